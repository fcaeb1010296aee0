"""Items to solve and how they are scored: the values that task sets are made of. No torch, no network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TaskItem:
    """One prompt with its accepted answers."""

    task_type: str
    item_id: str
    prompt: str
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TaskSet:
    """Items of one or more task types, each type with the name of its scorer (`services.tasks.scoring.SCORERS`)."""

    name: str
    items: tuple[TaskItem, ...]
    scorers: Mapping[str, str]

    @property
    def task_types(self) -> tuple[str, ...]:
        return tuple(sorted(self.scorers))

    def of_type(self, task_type: str) -> tuple[TaskItem, ...]:
        return tuple(item for item in self.items if item.task_type == task_type)
