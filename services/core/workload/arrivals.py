"""Arrival instants of an open-loop load, fixed before the run: Poisson, bursty, or from a trace. The same seed gives the same bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Instants = NDArray[np.float64]  # ascending, seconds from the start of the run


def poisson(rate_per_s: float, duration_s: float, rng: np.random.Generator) -> Instants:
    """A Poisson process: the number of arrivals is Poisson, and given the number they are uniform over the duration.

    The sum of users' processes is one too, so this is also "Poisson per user" with each arrival given to a random user.
    """
    _require_positive(rate_per_s=rate_per_s, duration_s=duration_s)
    return np.sort(rng.random(int(rng.poisson(rate_per_s * duration_s))) * duration_s)


def bursty(
    rate_per_s: float,
    duration_s: float,
    rng: np.random.Generator,
    *,
    burst_ratio: float = 5.0,
    burst_share: float = 0.2,
    mean_burst_s: float = 5.0,
) -> Instants:
    """A Markov-modulated Poisson process of two states (MMPP-2) with mean rate `rate_per_s`.

    Bursts take `burst_share` of the time, last `mean_burst_s` on average, and bring `burst_ratio` times the rate of calm.
    """
    _require_positive(rate_per_s=rate_per_s, duration_s=duration_s, burst_ratio=burst_ratio, mean_burst_s=mean_burst_s)
    if not 0.0 < burst_share < 1.0:
        raise ValueError(f"burst_share is {burst_share}: it is a share of the time between 0 and 1")
    calm_rate_per_s = rate_per_s / (1.0 - burst_share + burst_share * burst_ratio)
    mean_calm_s = mean_burst_s * (1.0 - burst_share) / burst_share
    in_burst = bool(rng.random() < burst_share)
    start_s, parts = 0.0, []
    while start_s < duration_s:
        end_s = min(start_s + rng.exponential(mean_burst_s if in_burst else mean_calm_s), duration_s)
        rate = calm_rate_per_s * (burst_ratio if in_burst else 1.0)
        parts.append(start_s + np.sort(rng.random(int(rng.poisson(rate * (end_s - start_s))))) * (end_s - start_s))
        start_s, in_burst = end_s, not in_burst
    return np.concatenate(parts)


def from_trace(arrival_s: Sequence[float] | Instants, speed: float, duration_s: float, start_s: float = 0.0) -> Instants:
    """Arrivals of a trace from `start_s` on, played `speed` times as fast, for `duration_s` of the run's time."""
    _require_positive(speed=speed, duration_s=duration_s)
    played = (np.sort(np.asarray(arrival_s, dtype=np.float64)) - start_s) / speed
    return played[(played >= 0.0) & (played < duration_s)]


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0.0:
            raise ValueError(f"{name} is {value}: it must be above 0")
