"""The offline optimum of small cases: the assignment of tasks to edges that costs least, everything known, by search. Knows no scenario.

Edges serve one task at a time, first in, first out, with fixed models: what every policy of the simulator is held to. Other orders,
which no policy may choose, could cost less still. Exponential in the worst case: for about a dozen tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Column = NDArray[np.float64]  # (num_tasks,)
Table = NDArray[np.float64]  # (num_tasks, num_edges)
Objective = Literal["positive_cost", "weighted_cost"]  # of `core/workload/costs.py`; weighted_cost is eq. (1) of the paper


@dataclass(frozen=True, slots=True, eq=False)
class Optimum:
    edge: NDArray[np.int64]  # (num_tasks,)
    value: float


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """`arrival_s` ascending; `times_s[task, edge]` of service; `quality` likewise; `alpha` of each task. `quality_scale` in seconds."""

    arrival_s: Column
    times_s: Table
    quality: Table
    alpha: Column
    quality_scale: float = 1.0

    def __post_init__(self) -> None:
        num, edges = self.times_s.shape
        if self.quality.shape != (num, edges) or self.arrival_s.shape != (num,) or self.alpha.shape != (num,):
            raise ValueError(f"arrival_s and alpha need shape ({num},), quality ({num}, {edges}): those of times_s")
        if num == 0 or (np.diff(self.arrival_s) < 0.0).any():
            raise ValueError("arrival_s: give at least one task, and tasks in the order in which they arrive")


def value_of(case: Case, edge: NDArray[np.int64], objective: Objective) -> float:
    """What this assignment costs."""
    free_s = np.zeros(case.times_s.shape[1])
    completed_s = np.zeros(len(edge))
    for task, chosen in enumerate(edge):
        free_s[chosen] = completed_s[task] = max(free_s[chosen], case.arrival_s[task]) + case.times_s[task, chosen]
    weight = case.alpha * case.quality_scale
    quality = case.quality[np.arange(len(edge)), edge]
    if objective == "positive_cost":
        return float(np.mean(completed_s - case.arrival_s + weight * (1.0 - quality)))
    return float(completed_s.max() - case.arrival_s[0] - np.sum(weight * quality))


def optimum(case: Case, objective: Objective) -> Optimum:
    """Branch and bound over tasks by arrival. What is left is bounded from below by every task at its best edge, without a queue."""
    edge = _Search(case, objective).best()
    return Optimum(edge, value_of(case, edge, objective))


class _Search:
    """Depth first. A node is a number of assigned tasks with the instants at which edges are free, and what was spent.

    Minimised is Σ price, plus completion times (positive_cost: price is alpha · quality_scale · (1 - quality)) or plus the last completion
    (weighted_cost, without the first arrival: price is -alpha · quality_scale · quality).
    """

    def __init__(self, case: Case, objective: Objective) -> None:
        self._sums_times = objective == "positive_cost"
        weight = (case.alpha * case.quality_scale)[:, None]
        price = weight * (1.0 - case.quality) if self._sums_times else -weight * case.quality
        self._arrival_s, self._times_s, self._price = case.arrival_s.tolist(), case.times_s.tolist(), price.tolist()
        self._num, self._num_edges = case.times_s.shape
        self._left = _sums_after((case.times_s + price if self._sums_times else price).min(axis=1))
        soonest_s = case.arrival_s + case.times_s.min(axis=1)
        self._last_s = [*np.maximum.accumulate(soonest_s[::-1])[::-1].tolist(), -np.inf]  # [n]: no sooner do tasks from n on end
        self._least, self._chosen, self._path = np.inf, [0] * self._num, [0] * self._num

    def best(self) -> NDArray[np.int64]:
        self._visit(0, [0.0] * self._num_edges, 0.0, -np.inf)
        return np.array(self._chosen, dtype=np.int64)

    def _visit(self, task: int, free_s: list[float], spent: float, last_s: float) -> None:
        if task == self._num:
            self._least, self._chosen = self._bound(task, spent, last_s), self._path.copy()
            return
        at_s, times_s, price = self._arrival_s[task], self._times_s[task], self._price[task]
        children = []
        for edge in range(self._num_edges):
            done_s = max(free_s[edge], at_s) + times_s[edge]
            paid = spent + price[edge] + (done_s - at_s if self._sums_times else 0.0)
            latest_s = max(last_s, done_s)
            children.append((self._bound(task + 1, paid, latest_s), edge, done_s, paid, latest_s))
        for bound, edge, done_s, paid, latest_s in sorted(children):
            if bound >= self._least - 1e-12:
                return
            self._path[task] = edge
            self._visit(task + 1, [done_s if e == edge else free for e, free in enumerate(free_s)], paid, latest_s)

    def _bound(self, num_assigned: int, spent: float, last_s: float) -> float:
        """No completion of these assignments costs less; exact when all are assigned."""
        last = 0.0 if self._sums_times else max(last_s, self._last_s[num_assigned])
        return spent + self._left[num_assigned] + last


def _sums_after(values: Column) -> list[float]:
    """[n]: sum of the values from n on."""
    return [*np.cumsum(values[::-1])[::-1].tolist(), 0.0]
