"""Round robin: edges in turn, by id. Predicts nothing."""

from __future__ import annotations

import numpy as np

from services.core.offload.candidates import CandidateTable
from services.core.offload.policies import Choice
from services.core.offload.values import Task


class RoundRobin:
    def __init__(self) -> None:
        self._last = ""

    def choose(self, task: Task, candidates: CandidateTable, rng: np.random.Generator) -> Choice:
        following = (row for row, edge in enumerate(candidates.edges) if edge.edge_id > self._last)
        return Choice((next(following, 0),), "round robin")

    def chosen(self, edge_ids: tuple[str, ...]) -> None:
        self._last = edge_ids[-1]


POLICY = RoundRobin
