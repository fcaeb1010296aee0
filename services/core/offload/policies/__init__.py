"""Offload policies, one file each; the file's name is the policy's name. To add one, add a file that defines `POLICY`, a class with
`choose` and `chosen` as in `OffloadPolicy`. Nothing else is to be edited. Files that begin with an underscore are not policies.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from services.core.offload.candidates import CandidateTable
from services.core.offload.values import Task, value


@value
class Choice:
    """Rows of the candidate table, and why these."""

    rows: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a task: the version that answered, the quality expected of it, and the time since arrival, downlink included."""

    task: Task
    edge_id: str
    version: str
    completion_time_s: float
    quality: float


class OffloadPolicy(Protocol):
    """Chooses among at least one candidate."""

    def choose(self, task: Task, candidates: CandidateTable, rng: np.random.Generator) -> Choice:
        """Changes nothing: a task that is only explained gets the decision that it would get if it were sent."""
        ...

    def chosen(self, edge_ids: tuple[str, ...]) -> None:
        """A choice was taken."""
        ...


@runtime_checkable
class LearningPolicy(Protocol):
    """What a policy also has when it remembers tasks or learns from them. Time is `task.arrived_at_s`; there is no other."""

    def sent(self, task: Task, candidates: CandidateTable, rows: tuple[int, ...]) -> None:
        """The choice of `rows` was taken for this task; called after `chosen`."""
        ...

    def learned(self, outcome: Outcome) -> None:
        """A task finished. Tasks that fail or are cancelled teach nothing."""
        ...


def names() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")))


def policy(name: str, **given: object) -> OffloadPolicy:
    """The policy of that name with the given options; `round-robin` and `round_robin` are the same."""
    unknown = sorted(set(given) - set(options(name)))
    if unknown:
        raise ValueError(f"policy {name!r} has no option {unknown[0]!r}; it has {', '.join(options(name)) or 'none'}")
    made: OffloadPolicy = _kind(name)(**given)
    return made


def options(name: str) -> tuple[str, ...]:
    """What the policy can be constructed with."""
    return tuple(inspect.signature(_kind(name)).parameters)


def _kind(name: str) -> Any:
    module_name = name.replace("-", "_")
    if module_name not in names():
        raise ValueError(f"policy is {name!r}: choose one of {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{module_name}").POLICY
