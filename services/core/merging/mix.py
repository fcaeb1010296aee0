"""The mix behind a window of counts: which shares of the base profiles explain it best (non-negative least squares).

Requests name a mix, not raw frequencies, because raw frequencies never repeat: equal traffic then asks for equal models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls  # type: ignore[attr-defined,unused-ignore]  # re-exported without saying so

from services.core.merging.errors import CountsError, MixError
from services.core.merging.shift import variation
from services.core.merging.snapping import largest_remainder
from services.core.merging.values import Counts, Mix, normalised

GRID = 20
FIRST_LEAD = 0.8  # share of the task type that leads an edge's first mix


def first_mix(task_types: Sequence[str], number: int) -> dict[str, float]:
    """What edge `number` starts from when nobody says: with nothing known, every edge is led by a task type of its own (the paper draws one
    at random), since edges that all begin alike would all know the same."""
    if not task_types:
        return {}
    others = len(task_types) - 1
    shares = dict.fromkeys(sorted(task_types), (1 - FIRST_LEAD) / others if others else 0.0)
    return shares | {sorted(task_types)[number % len(task_types)]: FIRST_LEAD if others else 1.0}


def explain(counts: Counts, profiles: Mapping[str, NDArray[np.float64]], grid: int = GRID) -> Mix:
    """Shares by task type (multiples of 1/grid, those above zero) and the total variation they leave unexplained.

    `counts` are (num_layers, num_experts). A profile holds the expected counts of one task, so shares are shares of tasks; profiles
    whose rows all sum to 1 are frequencies, and shares are then shares of tokens. Layers weigh by 1/√tokens, as Poisson noise does.
    """
    task_types = sorted(profiles)
    if not task_types:
        raise MixError("profiles are empty: a mix needs at least one task type")
    if any(profiles[t].shape != counts.shape for t in task_types):
        raise CountsError(f"counts have shape {counts.shape}, profiles {profiles[task_types[0]].shape}: they are of different models")
    observed = counts.astype(np.float64)
    if all(_is_frequencies(profiles[t]) for t in task_types):
        observed = normalised(observed)
    weights = 1 / np.sqrt(np.maximum(observed.sum(axis=1, keepdims=True), 1.0))
    columns = np.stack([(profiles[t] * weights).ravel() for t in task_types], axis=1)
    solution, _ = nnls(columns, (observed * weights).ravel())
    steps = largest_remainder(solution, grid)
    shares = {t: float(s) / grid for t, s in zip(task_types, steps, strict=True) if s > 0}
    return Mix(shares, _residual(counts, profiles, shares))


def distance(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Total variation between two mixes, in [0, 1]."""
    return 0.5 * sum(abs(first.get(t, 0.0) - second.get(t, 0.0)) for t in sorted({*first, *second}))


def expected(profiles: Mapping[str, NDArray[np.float64]], shares: Mapping[str, float]) -> NDArray[np.float64]:
    """Expected counts of one task of the mix, (num_layers, num_experts)."""
    total: NDArray[np.float64] = np.sum([share * profiles[t] for t, share in sorted(shares.items()) if t in profiles], axis=0)
    return total


def checked_shares(shares: Mapping[str, float], task_types: tuple[str, ...]) -> dict[str, float]:
    """`shares` without zeros, in the order of their names; raises MixError naming the task type or the sum that is wrong."""
    unknown = sorted(set(shares) - set(task_types))
    if unknown:
        raise MixError(f"mix names the task type {unknown[0]!r}, which the base model has no profile of; it has {', '.join(task_types)}")
    if any(not (0 <= s <= 1 + 1e-9) for s in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise MixError(f"mix shares must be in [0, 1] and sum to 1; they sum to {sum(shares.values()):.6g}")
    return {t: float(s) for t, s in sorted(shares.items()) if s > 0}


def _residual(counts: Counts, profiles: Mapping[str, NDArray[np.float64]], shares: Mapping[str, float]) -> float:
    seen = counts.sum(axis=1) > 0
    if not seen.any():
        return 0.0
    explained = normalised(expected(profiles, shares))
    return float(variation(normalised(counts), explained)[seen].mean())


def _is_frequencies(profile: NDArray[np.float64]) -> bool:
    sums = profile.sum(axis=1)
    return bool(np.allclose(sums[sums > 0], 1.0, atol=1e-6))
