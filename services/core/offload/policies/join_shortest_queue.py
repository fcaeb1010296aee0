"""Join the shortest queue (Winston 1977). The paper's form counts tasks; the strong one looks at the predicted queue wait in seconds.

Ties in the wait go to the fewest tasks outstanding, what still ties is drawn.
"""

from __future__ import annotations

import numpy as np

from services.core.offload.candidates import CandidateTable
from services.core.offload.policies import Choice
from services.core.offload.policies._forms import PAPER, STRONG, checked_form
from services.core.offload.ties import lowest_rows
from services.core.offload.values import Task


class ShortestQueue:
    def __init__(self, form: str = STRONG) -> None:
        self._paper = checked_form(form) == PAPER

    def choose(self, task: Task, candidates: CandidateTable, rng: np.random.Generator) -> Choice:
        columns = candidates.columns
        if self._paper:
            return Choice((int(rng.choice(lowest_rows(columns.outstanding))),), "shortest queue by tasks")
        return Choice((int(rng.choice(lowest_rows(columns.queue_wait_s, columns.outstanding))),), "shortest predicted queue wait")

    def chosen(self, edge_ids: tuple[str, ...]) -> None:
        """Keeps no state."""


POLICY = ShortestQueue
