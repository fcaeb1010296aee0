"""Instances drawn within the range of the paper's Assumption 1, predictions of them that keep to that range, and ratios over many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from loadgen.experiments._makespan import Seconds, competitive_ratio

MIN_TIME_S = 0.2  # paper, Sec. IV: WikiQA takes 0.2 s to 4 s
MU, NUM_EDGES = 20.0, 20  # and so, by Assumption 2, mu = S = 20
MANY = 50  # tasks for each edge from which on the ratio is expected to hold
PREDICTIONS = {
    "true": "true times",
    "independent": "drawn like the times, apart from them",
    "constant": "the mean for all",
    "inverted": "the longest look the shortest",
}
ABOVE = 1e-9  # what counts as above a bound, as against rounding
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Drawn:
    """`runs` instances: `per_edge` tasks for each of `num_edges` edges, times from t_min to mu · t_min with mean (mu + 1)/2 · t_min."""

    prediction: str
    per_edge: float
    num_edges: int = NUM_EDGES
    mu: float = MU
    two_point: bool = False  # t_min or mu · t_min, one as probable as the other; else uniform between them
    runs: int = 60
    seed: int = 0

    @property
    def num_tasks(self) -> int:
        return round(self.per_edge * self.num_edges)

    @property
    def mean_time_s(self) -> float:
        return MIN_TIME_S * (self.mu + 1.0) / 2.0


def instance(drawn: Drawn, rng: np.random.Generator) -> tuple[Seconds, Seconds]:
    """Times and predictions, (num_tasks,) each."""
    times_s = _times(drawn, rng)
    match drawn.prediction:
        case "true":
            return times_s, times_s
        case "independent":
            return times_s, _times(drawn, rng)
        case "constant":
            return times_s, np.full(drawn.num_tasks, drawn.mean_time_s)
        case "inverted":
            return times_s, MIN_TIME_S * (1.0 + drawn.mu) - times_s
        case other:
            raise ValueError(f"prediction is {other!r}: choose one of {', '.join(PREDICTIONS)}")


def arrivals(drawn: Drawn, utilisation: float, rng: np.random.Generator) -> Seconds:
    """Instants of a Poisson process that brings `utilisation` times what the edges can do; the first is 0."""
    gaps_s = rng.exponential(drawn.mean_time_s / (drawn.num_edges * utilisation), drawn.num_tasks)
    at_s: Seconds = np.cumsum(gaps_s) - gaps_s[0]
    return at_s


def ratios(drawn: Drawn, ratio: Callable[[np.random.Generator], float], num_switches: int = 0) -> Figures:
    """Of `runs` instances; `above` is the share of them that break the paper's bound."""
    found = np.array([ratio(np.random.default_rng([drawn.seed, run])) for run in range(drawn.runs)])
    bound = competitive_ratio(drawn.mu, num_switches)
    return {"mean": float(found.mean()), "max": float(found.max()), "above": float((found > bound + ABOVE).mean()), "bound": bound}


def _times(drawn: Drawn, rng: np.random.Generator) -> Seconds:
    longest_s = drawn.mu * MIN_TIME_S
    if drawn.two_point:
        return np.where(rng.random(drawn.num_tasks) < 0.5, MIN_TIME_S, longest_s)
    return rng.uniform(MIN_TIME_S, longest_s, drawn.num_tasks)
