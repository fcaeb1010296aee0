"""ONTO: the edge with the lowest predicted cost, at once and for good (paper, Algorithm 1).

Ties (reading A12): lowest predicted finish, then lowest edge id. Several brokers that see the same tie would all send the same way, so
`ties="random"` breaks it at random, as routers do against thundering herds.
"""

from __future__ import annotations

import numpy as np

from services.core.offload.candidates import CandidateTable
from services.core.offload.policies import Choice
from services.core.offload.values import Task

TIE_S = 1e-9


class Onto:
    def __init__(self, ties: str = "lowest-id") -> None:
        if ties not in ("lowest-id", "random"):
            raise ValueError(f"ties is {ties!r}: choose lowest-id or random")
        self._random_ties = ties == "random"

    def choose(self, task: Task, candidates: CandidateTable, rng: np.random.Generator) -> Choice:
        cost = candidates.columns.cost
        row = int(cost.argmin())
        tied = (cost <= cost.item(row) + TIE_S).nonzero()[0]
        if len(tied) == 1:
            return Choice((row,), "lowest predicted cost")
        finish_s = candidates.columns.completion_time_s[tied]
        tied = tied[finish_s <= finish_s.min() + TIE_S]
        row = int(rng.choice(tied)) if self._random_ties and len(tied) > 1 else int(tied[0])
        return Choice((row,), "lowest predicted cost, tie")

    def chosen(self, edge_ids: tuple[str, ...]) -> None:
        """Keeps no state."""


POLICY = Onto
