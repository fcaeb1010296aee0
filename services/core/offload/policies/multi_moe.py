"""Multi-MoE: several variants of one MoE on one GPU (Imani et al., ICML 2025, PMLR 267; arXiv 2505.06481), its dispatch.

The paper describes one server and no dispatch. Paper's form: every user at the home server. Strong form: the shortest predicted queue,
where an edge whose last task was of another type costs `swap_s` more, the time to swap the non-expert layers (0.67 GB over PCIe).
What its servers hold, experts of several variants in the order of their similarity, is `services.core.runtimes.multi_model`.
"""

from __future__ import annotations

import numpy as np

from services.core.offload.candidates import CandidateTable
from services.core.offload.policies import Choice, Outcome
from services.core.offload.policies._forms import PAPER, STRONG, checked_form
from services.core.offload.policies.home import Home
from services.core.offload.ties import lowest_rows
from services.core.offload.values import Task


class VariantAffinity:
    def __init__(self, form: str = STRONG, swap_s: float = 0.056) -> None:
        self._home = Home() if checked_form(form) == PAPER else None
        self._swap_s = swap_s
        self._active: dict[str, str] = {}  # edge -> task type of the last task sent there

    def choose(self, task: Task, candidates: CandidateTable, rng: np.random.Generator) -> Choice:
        if self._home is not None:
            return self._home.choose(task, candidates, rng)
        swaps = np.array([self._active.get(edge.edge_id, task.likely_type) != task.likely_type for edge in candidates.edges])
        columns = candidates.columns
        rows = lowest_rows(columns.queue_wait_s + self._swap_s * swaps, columns.outstanding)
        row = int(rng.choice(rows))
        return Choice((row,), "shortest predicted queue wait, swap included" if swaps[row] else "shortest predicted queue wait, no swap")

    def chosen(self, edge_ids: tuple[str, ...]) -> None:
        """What is remembered needs the task: `sent`."""

    def sent(self, task: Task, candidates: CandidateTable, rows: tuple[int, ...]) -> None:
        for row in rows:
            self._active[candidates.edges[row].edge_id] = task.likely_type

    def learned(self, outcome: Outcome) -> None:
        """Learns nothing from outcomes."""


POLICY = VariantAffinity
