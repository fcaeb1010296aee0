"""Offload policies, one file each; the file's name is the policy's name. To add one, add a file that defines `POLICY`, a class with
`choose` and `chosen` as in `OffloadPolicy`. Nothing else is to be edited.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from services.core.offload.candidates import CandidateTable
from services.core.offload.values import Task


@dataclass(frozen=True, slots=True)
class Choice:
    """Rows of the candidate table, and why these."""

    rows: tuple[int, ...]
    reason: str


class OffloadPolicy(Protocol):
    """Chooses among at least one candidate."""

    def choose(self, task: Task, candidates: CandidateTable, rng: np.random.Generator) -> Choice:
        """Changes nothing: a task that is only explained gets the decision that it would get if it were sent."""
        ...

    def chosen(self, edge_ids: tuple[str, ...]) -> None:
        """A choice was taken."""
        ...


def names() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def policy(name: str, **options: str) -> OffloadPolicy:
    """The policy of that name; `round-robin` and `round_robin` are the same."""
    module_name = name.replace("-", "_")
    if module_name not in names():
        raise ValueError(f"policy is {name!r}: choose one of {', '.join(names())}")
    made: OffloadPolicy = importlib.import_module(f"{__name__}.{module_name}").POLICY(**options)
    return made
