"""List scheduling with feedback, in plain Python: finished tasks leave, what runs melts, and updates stop an edge.

What the proofs of the paper have in mind (Sec. IV and V), apart from the engine, to compare the engine with and for many runs.
Identical edges, one task at a time each, no transfers, no quality.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from loadgen.experiments._makespan import Places, Seconds

SWITCH = -1  # stands for a task


@dataclass(frozen=True, slots=True)
class Switch:
    """From `asked_at_s` on, once its running task has ended, the edge serves nothing for `lasts_s` (reading A9). The scheduler knows."""

    asked_at_s: float
    edge: int
    lasts_s: float


@dataclass(slots=True)
class _Edge:
    waiting: deque[tuple[int, float, float]] = field(default_factory=deque)  # task, its time, its predicted time
    waiting_s: float = 0.0  # predicted, of all that wait
    running: bool = False
    predicted_end_at_s: float = 0.0

    def wait_s(self, now_s: float, least_left_s: float) -> float:
        return max(self.predicted_end_at_s - now_s, least_left_s) + self.waiting_s if self.running else 0.0


class _Run:
    def __init__(self, num_tasks: int, num_edges: int) -> None:
        self.edges = [_Edge() for _ in range(num_edges)]
        self.completed_at_s = np.zeros(num_tasks)
        self._ends: list[tuple[float, int, int]] = []  # instant, edge, task

    def pass_until(self, now_s: float) -> None:
        """Tasks and switches end, and what waits begins."""
        while self._ends and self._ends[0][0] <= now_s:
            at_s, index, task = heapq.heappop(self._ends)
            self.edges[index].running = False
            if task != SWITCH:
                self.completed_at_s[task] = at_s
            self.start_next(index, at_s)

    def start_next(self, index: int, now_s: float) -> None:
        edge = self.edges[index]
        if edge.running or not edge.waiting:
            return
        task, time_s, predicted_s = edge.waiting.popleft()
        edge.waiting_s = edge.waiting_s - predicted_s if edge.waiting else 0.0
        edge.running, edge.predicted_end_at_s = True, now_s + predicted_s
        heapq.heappush(self._ends, (now_s + time_s, index, task))

    def add(self, index: int, task: int, time_s: float, predicted_s: float, now_s: float) -> None:
        edge = self.edges[index]
        (edge.waiting.appendleft if task == SWITCH else edge.waiting.append)((task, time_s, predicted_s))
        edge.waiting_s += predicted_s
        self.start_next(index, now_s)


def place_with_feedback(
    arrived_at_s: Seconds,
    times_s: Seconds,
    predicted_s: Seconds,
    num_edges: int,
    switches: Sequence[Switch] = (),
    least_left_s: float = 0.0,
) -> tuple[Places, Seconds]:
    """Where each task went, and when it ended. Tasks come in ascending order.

    Each goes to the edge with the least predicted wait, then the lowest index. A running task needs what was predicted less what has
    passed, but `least_left_s` at least (reading A11).
    """
    run = _Run(len(times_s), num_edges)
    places = np.empty(len(times_s), dtype=np.int64)
    asked = deque(sorted(switches, key=lambda switch: (switch.asked_at_s, switch.edge)))
    for task, now_s in enumerate(arrived_at_s.tolist()):
        while asked and asked[0].asked_at_s <= now_s:
            switch = asked.popleft()
            run.pass_until(switch.asked_at_s)
            run.add(switch.edge, SWITCH, switch.lasts_s, switch.lasts_s, switch.asked_at_s)
        run.pass_until(now_s)
        waits_s = [edge.wait_s(now_s, least_left_s) for edge in run.edges]
        places[task] = waits_s.index(min(waits_s))
        run.add(int(places[task]), task, float(times_s[task]), float(predicted_s[task]), now_s)
    for switch in asked:
        run.pass_until(switch.asked_at_s)
        run.add(switch.edge, SWITCH, switch.lasts_s, switch.lasts_s, switch.asked_at_s)
    run.pass_until(np.inf)
    return places, run.completed_at_s
