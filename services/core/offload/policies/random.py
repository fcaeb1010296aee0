"""Random: any candidate, with equal probability."""

from __future__ import annotations

import numpy as np

from services.core.offload.candidates import CandidateTable
from services.core.offload.policies import Choice
from services.core.offload.values import Task


class RandomChoice:
    def choose(self, task: Task, candidates: CandidateTable, rng: np.random.Generator) -> Choice:
        return Choice((int(rng.integers(len(candidates))),), "random")

    def chosen(self, edge_ids: tuple[str, ...]) -> None:
        """Keeps no state."""


POLICY = RandomChoice
