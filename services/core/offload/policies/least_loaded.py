"""Least loaded: the edge with the fewest tasks outstanding, whatever their length; ties at random."""

from __future__ import annotations

import numpy as np

from services.core.offload.candidates import CandidateTable
from services.core.offload.policies import Choice
from services.core.offload.values import Task


class LeastLoaded:
    def choose(self, task: Task, candidates: CandidateTable, rng: np.random.Generator) -> Choice:
        outstanding = candidates.columns.outstanding
        fewest = np.flatnonzero(outstanding == outstanding.min())
        return Choice((int(rng.choice(fewest)),), "fewest tasks outstanding")

    def chosen(self, edge_ids: tuple[str, ...]) -> None:
        """Keeps no state."""


POLICY = LeastLoaded
