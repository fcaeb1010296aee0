"""What the oracle is told of times: when a task would begin and end at each edge, and what others would lose, by the edge's own physics.

No prediction: true lengths, the batch as it is and as it empties, tasks that are still on their way, the downtime of an update that runs.
It does not know what comes later, tasks or updates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from loadgen.simulator.edge import Edge

Column = NDArray[np.float64]  # (num_edges,)


class Foresight:
    """`load_s`: what an update's load takes. Told of every task that is sent (`sent`) and that reached its edge (`arrived`)."""

    def __init__(self, edges: Sequence[Edge], load_s: float) -> None:
        self._edges, self._load_s = edges, load_s
        self._coming: list[dict[int, float]] = [{} for _ in edges]  # by edge: tasks on their way, and when they are there

    def sent(self, task: int, edge: int, at_edge_s: float) -> None:
        self._coming[edge][task] = at_edge_s

    def arrived(self, task: int, edge: int) -> None:
        self._coming[edge].pop(task, None)

    def times(self, task: int, at_edge_s: Column, now_s: float) -> tuple[Column, Column, Column]:
        """Of each edge, reached at `at_edge_s`: when the task would begin and be done there, and the seconds that all others would lose."""
        told = []
        for n, edge in enumerate(self._edges):
            coming = [*self._coming[n].items()]
            _, ends = run_on(edge.copy(), coming, now_s, self._load_s)
            starts, with_it = run_on(edge.copy(), [*coming, (task, float(at_edge_s[n]))], now_s, self._load_s)
            others_s = sum(with_it.values()) - with_it[task] - sum(ends.values())
            told.append((starts[task], with_it[task], others_s))
        begins, done, lost = np.array(told).T
        return begins, done, lost


def run_on(edge: Edge, coming: Sequence[tuple[int, float]], now_s: float, load_s: float) -> tuple[dict[int, float], dict[int, float]]:
    """Runs this edge until nothing is left: the instants at which tasks begin (those that are not running) and end, by task.
    `coming`: tasks still on their way, and when they are there."""
    arrivals = sorted(((at_s, n) for n, at_s in coming), reverse=True)
    starts: dict[int, float] = {}
    ends: dict[int, float] = {}
    while arrivals or edge.queue or edge.num_running:
        if not edge.admitting and not edge.num_running:  # it has drained, and loads
            at_s = edge.available_at_s if edge.available_at_s > now_s else now_s + load_s
            while arrivals and arrivals[-1][0] <= at_s:
                edge.arrived(arrivals.pop()[1], now_s)
            edge.admitting, now_s = True, at_s
            edge.look_soon(now_s)
        elif arrivals and arrivals[-1][0] < edge.turn_at_s:
            at_s, task = arrivals.pop()
            now_s = max(at_s, now_s)
            edge.arrived(task, now_s)
        else:
            now_s = edge.turn_at_s
            ended, begun = edge.turn(now_s)
            starts.update(dict.fromkeys(begun, now_s))
            ends.update(dict.fromkeys(ended, now_s))
    return starts, ends
