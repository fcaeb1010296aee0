"""Byte budgets: how many experts an edge's memory holds, exactly: (budget - reserve - everything else) / bytes of one expert, floored.

Which layer gets the next expert is an allocation's business; that the sum never exceeds the budget is this module's alone.
"""

from __future__ import annotations

from collections.abc import Iterable

from services.core.merging.errors import BudgetError
from services.core.merging.values import Budget, MergePlan


def expert_room_bytes(budget: Budget) -> int:
    """Bytes left for experts after the reserve and the rest of the model; negative when these alone do not fit."""
    return budget.bytes - budget.reserve_bytes - budget.non_expert_bytes


def num_slots(budget: Budget) -> int:
    """Experts that fit over all layers; where layers differ, counted in their largest expert."""
    return max(0, expert_room_bytes(budget)) // max(budget.expert_bytes)


def smallest_bytes(budget: Budget, floor: int = 1) -> int:
    """The least `Budget.bytes` that holds `floor` experts in every layer."""
    return budget.reserve_bytes + budget.non_expert_bytes + floor * sum(budget.expert_bytes)


def full_bytes(budget: Budget, num_experts: int) -> int:
    """The least `Budget.bytes` that holds the unmerged model."""
    return smallest_bytes(budget, num_experts)


def filled(budget: Budget, order: Iterable[int], floor: int, num_experts: int) -> tuple[int, ...]:
    """Experts kept by layer: `floor` in each, then one more to each layer of `order` as long as it fits.

    `order` names each layer (num_experts - floor) times. A layer whose expert does not fit is passed over, and what did not fit
    once never fits later, so at the end the room left is less than any expert that is still missing.
    """
    if budget.bytes < smallest_bytes(budget, floor):
        raise BudgetError(smallest_bytes(budget, floor), budget.bytes)
    kept = [floor] * len(budget.expert_bytes)
    room = expert_room_bytes(budget) - floor * sum(budget.expert_bytes)
    for layer in order:
        if budget.expert_bytes[layer] <= room and kept[layer] < num_experts:
            kept[layer] += 1
            room -= budget.expert_bytes[layer]
    return tuple(kept)


def plan_bytes(plan: MergePlan, budget: Budget) -> int:
    """Bytes of the model that `plan` describes: kept experts and everything else, the reserve not counted."""
    return budget.non_expert_bytes + sum(len(layer.groups) * each for layer, each in zip(plan.layers, budget.expert_bytes, strict=True))
