"""Allocations: which experts rank first, and in which order layers are given theirs. One file each, registered by its name.

Contract: a file defines `slot_order(ranking, floor) -> list[int]`, which names each layer exactly (num_experts - floor) times, the
neediest first; `budget.filled` hands the experts out by bytes. A file may define `ranking(use, tasks, num_slots)` too, which turns the
frequencies of the mix into the (num_layers, num_experts) ranking that both `slot_order` and the choice of dominant experts go by; without
it they go by frequency.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from services.core.merging import registry
from services.core.merging.values import Frequencies


@dataclass(frozen=True, slots=True)
class TaskUse:
    """One task type in the mix: its share of the tasks, and how its own tokens use the experts."""

    task_type: str
    share: float
    frequencies: Frequencies  # (num_layers, num_experts)


SlotOrder = Callable[[Frequencies, int], list[int]]
Ranking = Callable[[Frequencies, Sequence[TaskUse], int], Frequencies]


@dataclass(frozen=True, slots=True)
class Allocation:
    slot_order: SlotOrder
    ranking: Ranking


def allocation(name: str) -> Allocation:
    slot_order = cast(SlotOrder, registry.entry(__name__, name, "slot_order"))
    ranking = registry.optional_entry(__name__, name, "ranking")
    return Allocation(slot_order, cast(Ranking, ranking) if ranking is not None else by_frequency)


def by_frequency(use: Frequencies, tasks: Sequence[TaskUse], num_slots: int) -> Frequencies:
    return use


def names() -> tuple[str, ...]:
    return registry.names(__name__)
