"""QoS-Quant: mixture of experts with mixture of precisions (Imani, Amirany, El-Ghazawi, ICRC 2024; arXiv 2407.14417), its dispatch.

The paper describes one server and no dispatch. Paper's form: every user at the home server. Strong form: shortest predicted queue.
What its servers hold, 4-bit and 16-bit experts by preference, is `services.core.runtimes.mixed_precision`.
"""

from __future__ import annotations

import numpy as np

from services.core.offload.candidates import CandidateTable
from services.core.offload.policies import Choice, OffloadPolicy
from services.core.offload.policies._forms import PAPER, STRONG, checked_form
from services.core.offload.policies.home import Home
from services.core.offload.policies.join_shortest_queue import ShortestQueue
from services.core.offload.values import Task


class SingleServers:
    def __init__(self, form: str = STRONG) -> None:
        self._dispatch: OffloadPolicy = Home() if checked_form(form) == PAPER else ShortestQueue()

    def choose(self, task: Task, candidates: CandidateTable, rng: np.random.Generator) -> Choice:
        return self._dispatch.choose(task, candidates, rng)

    def chosen(self, edge_ids: tuple[str, ...]) -> None:
        """Keeps no state."""


POLICY = SingleServers
