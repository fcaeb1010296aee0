"""A load plan: who sends which item when, fixed before the run. Sends nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from services.core.workload.arrivals import Instants
from services.core.workload.mixes import DriftingMix, RegionalMix, mix_drawn


@dataclass(frozen=True, slots=True)
class User:
    user_id: str
    region: str


@dataclass(frozen=True, slots=True)
class PlannedTask:
    at_s: float
    task_id: str
    user_id: str
    region: str
    task_type: str
    item_id: str
    alpha: float  # in (0, 1]


class _Deck:
    """Items in random order; every item comes once before any comes again."""

    def __init__(self, item_ids: Sequence[str], rng: np.random.Generator) -> None:
        self._item_ids = sorted(item_ids)
        self._rng = rng
        self._left: list[str] = []

    def draw(self) -> str:
        if not self._left:
            self._left = [self._item_ids[i] for i in self._rng.permutation(len(self._item_ids))]
        return self._left.pop()


def plan_load(
    items_by_type: Mapping[str, Sequence[str]],
    mix: DriftingMix | RegionalMix,
    arrivals: Instants | Sequence[float],
    users: Sequence[User],
    rng: np.random.Generator,
) -> tuple[PlannedTask, ...]:
    """One task an arrival: a random user (so each user's tasks are a thinned process of the same kind), a type from the mix of their
    region at that instant, an item id of that type, alpha from U(0, 1] (paper, Sec. VI). `items_by_type` holds item ids."""
    if not users:
        raise ValueError("users is empty: give at least one")
    missing = [task_type for task_type in mix.task_types if not items_by_type.get(task_type)]
    if missing:
        raise ValueError(f"mix names {', '.join(missing)}, of which there are no items: task types with items are {sorted(items_by_type)}")
    decks = {task_type: _Deck(items_by_type[task_type], rng) for task_type in mix.task_types}
    width = len(str(len(arrivals)))
    plan = []
    for n, at_s in enumerate(arrivals):
        user = users[int(rng.integers(len(users)))]
        task_type = mix_drawn(rng, mix.of(user.region).at(float(at_s)))
        item_id, alpha = decks[task_type].draw(), 1.0 - float(rng.random())
        plan.append(PlannedTask(float(at_s), f"task-{n:0{width}d}", user.user_id, user.region, task_type, item_id, alpha))
    return tuple(plan)
