"""HEFT: earliest predicted finish (Topcuoglu, Hariri, Wu, TPDS 13(3), 2002; the ONTO/JTOM paper prints "HERT").

An inference task is a graph of one node, so its upward rank is its mean inference time over the servers, and insertion into idle gaps is
moot under FIFO queues. Tasks come one at a time, so each goes to the earliest finish at once: both forms are this rule, ONTO without the
quality term. `by_rank` is the order in which a caller with several tasks at once (a time slot) would hand them in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.core.offload.candidates import CandidateTable
from services.core.offload.policies import Choice
from services.core.offload.policies._forms import STRONG, checked_form
from services.core.offload.ties import lowest_row
from services.core.offload.values import Task


class EarliestFinish:
    def __init__(self, form: str = STRONG) -> None:
        checked_form(form)

    def choose(self, task: Task, candidates: CandidateTable, rng: np.random.Generator) -> Choice:
        return Choice((lowest_row(candidates.columns.completion_time_s),), "earliest predicted finish")

    def chosen(self, edge_ids: tuple[str, ...]) -> None:
        """Keeps no state."""


def by_rank(tables: Sequence[CandidateTable]) -> tuple[int, ...]:
    """Positions of the tasks behind these candidate tables, longest mean inference time first."""
    ranks = [float(table.columns.inference_s.mean()) for table in tables]
    return tuple(sorted(range(len(ranks)), key=lambda i: (-ranks[i], i)))


POLICY = EarliestFinish
