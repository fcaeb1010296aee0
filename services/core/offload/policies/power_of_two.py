"""Power of two choices: the better of two candidates drawn at random (Mitzenmacher, TPDS 12(10), 2001).

The paper's form compares tasks outstanding, the strong one the predicted completion time.
"""

from __future__ import annotations

import numpy as np

from services.core.offload.candidates import CandidateTable
from services.core.offload.policies import Choice
from services.core.offload.policies._forms import PAPER, STRONG, checked_form
from services.core.offload.ties import lowest_row
from services.core.offload.values import Task


class BetterOfTwo:
    def __init__(self, form: str = STRONG) -> None:
        self._paper = checked_form(form) == PAPER

    def choose(self, task: Task, candidates: CandidateTable, rng: np.random.Generator) -> Choice:
        if len(candidates) == 1:
            return Choice((0,), "only one candidate")
        drawn = rng.choice(len(candidates), size=2, replace=False)
        column = candidates.columns.outstanding if self._paper else candidates.columns.completion_time_s
        better = "fewer tasks outstanding" if self._paper else "earlier predicted finish"
        return Choice((int(drawn[lowest_row(column[drawn])]),), f"{better} of two drawn")

    def chosen(self, edge_ids: tuple[str, ...]) -> None:
        """Keeps no state."""


POLICY = BetterOfTwo
