"""Qual-Greedy: the highest predicted quality, whatever the wait (baseline of the ONTO/JTOM paper, which gives it no source).

Ties: the paper's form takes the shortest predicted queue, the strong one the earliest predicted finish (then it is ONTO with alpha → ∞).
"""

from __future__ import annotations

import numpy as np

from services.core.offload.candidates import CandidateTable
from services.core.offload.policies import Choice
from services.core.offload.policies._forms import PAPER, STRONG, checked_form
from services.core.offload.ties import lowest_row
from services.core.offload.values import Task


class HighestQuality:
    def __init__(self, form: str = STRONG) -> None:
        self._paper = checked_form(form) == PAPER

    def choose(self, task: Task, candidates: CandidateTable, rng: np.random.Generator) -> Choice:
        columns = candidates.columns
        then = columns.queue_wait_s if self._paper else columns.completion_time_s
        return Choice((lowest_row(-columns.quality, then),), "highest predicted quality")

    def chosen(self, edge_ids: tuple[str, ...]) -> None:
        """Keeps no state."""


POLICY = HighestQuality
