"""The plan an edge holds already, as an argument for keeping its groups: what stays equal need not be shipped again.

A change must gain more than `keep_gain`: present dominants count as used (1 + keep_gain) times as much, present companions as
`keep_gain` more similar, and a group with the same members keeps its coefficients within a total variation of `keep_gain`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.core.merging.errors import CountsError
from services.core.merging.values import ExpertForm, LayerPlan, MergePlan

KEEP_GAIN = 0.1

Group = tuple[tuple[int, ...], tuple[float, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class PresentLayer:
    """One layer of the present plan, ready to weigh a new one. Without a present plan everything is neutral."""

    groups: Mapping[frozenset[int], Group]
    dominant: NDArray[np.bool_]  # (num_experts,)
    bonus: NDArray[np.float64]  # (num_experts, num_experts): similarity added to expert e joining dominant d
    keep_gain: float

    def favoured(self, usage: NDArray[np.float64]) -> NDArray[np.float64]:
        return usage * (1 + self.keep_gain * self.dominant)

    def kept(self, members: tuple[int, ...], weights: tuple[float, ...]) -> Group:
        """The present group where it has the same members and nearly the same coefficients, else the new one."""
        present = self.groups.get(frozenset(members))
        if present is None:
            return members, weights
        new = dict(zip(members, weights, strict=True))
        moved = 0.5 * sum(abs(new[expert] - weight) for expert, weight in zip(*present, strict=True))
        return present if moved <= self.keep_gain else (members, weights)


def present_layers(present: MergePlan | None, base: str, num_layers: int, num_experts: int, keep_gain: float) -> tuple[PresentLayer, ...]:
    if present is None:
        nothing = PresentLayer({}, np.zeros(num_experts, dtype=bool), np.zeros((num_experts, num_experts)), 0.0)
        return (nothing,) * num_layers
    if present.base != base or len(present.layers) != num_layers:
        raise CountsError(f"present plan {present.plan_id} is of base model {present.base}, not of {base}")
    return tuple(_present_layer(layer, num_experts, keep_gain) for layer in present.layers)


def _present_layer(layer: LayerPlan, num_experts: int, keep_gain: float) -> PresentLayer:
    dominant = np.zeros(num_experts, dtype=bool)
    bonus = np.zeros((num_experts, num_experts))
    for members in layer.groups:
        dominant[members[0]] = True
        bonus[list(members), members[0]] = keep_gain
    groups = {frozenset(m): (m, w) for m, w in zip(layer.groups, layer.coefficients, strict=True)}
    return PresentLayer(groups, dominant, bonus, keep_gain)


def changed_groups(plan: MergePlan, present: MergePlan) -> tuple[tuple[int, int], ...]:
    """(layer, group) of `plan` that `present` does not hold: what an edge must fetch when coming from `present`."""
    changed: list[tuple[int, int]] = []
    for i, (new, old) in enumerate(zip(plan.layers, present.layers, strict=True)):
        held = set(_told_groups(old))
        changed += [(i, g) for g, told in enumerate(_told_groups(new)) if told not in held]
    return tuple(changed)


def _told_groups(layer: LayerPlan) -> list[tuple[object, ...]]:
    """Members with their coefficients, and the form, of each group."""
    forms: tuple[ExpertForm | None, ...] = layer.forms or (None,) * len(layer.groups)
    return [(members, weights, form) for members, weights, form in zip(layer.groups, layer.coefficients, forms, strict=True)]
