"""Carries out a merge plan on a base model: the experts of the merged model. Plans are made in core; tensor rules live in merges/.

A rule that is a weighted sum reads each member's weights once, in the group's order, and makes no copy of them; members that count for
nothing are neither read nor aligned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from services.core.merging.values import LayerPlan, MergePlan
from services.model.alignment import Aligned, hidden_axis
from services.model.checkpoint import BaseModel
from services.model.families.base import ExpertStack
from services.model.merges import MergeMethod, MergeShares, merge_method, merge_shares

_PART_BYTES = 2 << 20  # of a merged matrix at a time: what stays in a core's cache


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What one group is made of. `members` count by `shares`, aligned to `reference`; a `rule` that is no sum sees them all."""

    reference: int
    members: tuple[int, ...]
    shares: tuple[float, ...]
    rule: str = ""

    @property
    def is_one_expert(self) -> bool:
        return self.members == (self.reference,) and self.shares == (1.0,)


def ingredients(plan: MergePlan) -> list[list[Ingredients]]:
    """Of every group, by layer. Plans of different methods that come to the same have equal ingredients."""
    shares = merge_shares(plan.method)
    if any(layer.forms for layer in plan.layers):
        raise ValueError(f"plan: it asks for forms; a merge by {plan.method} keeps experts as they are")
    return [
        [_ingredients(group, weights, plan.method, shares) for group, weights in zip(layer.groups, layer.coefficients, strict=True)]
        for layer in plan.layers
    ]


def merged_experts(base: BaseModel, aligned: Aligned, plan: MergePlan) -> list[ExpertStack]:
    """One stack a layer, in the base's dtype. A group of one keeps its expert's bytes; an unmerged layer is the base's own stack."""
    check_layers(base, plan)
    return [
        _merged_layer(stack, aligned, number, layer, groups)
        for number, (stack, layer, groups) in enumerate(zip(base.model.experts, plan.layers, ingredients(plan), strict=True))
    ]


def check_layers(base: BaseModel, plan: MergePlan) -> None:
    if len(plan.layers) != len(base.model.experts):
        raise ValueError(f"plan: {len(plan.layers)} layers for a model with {len(base.model.experts)} MoE layers; plan for this base model")


def merged_group(
    stack: ExpertStack, aligned: Aligned, number: int, group: Ingredients, room: Mapping[str, Tensor] | None = None
) -> Mapping[str, Tensor]:
    """The weights of one merged expert of layer `number`, in the stack's dtype: written into `room` (`new_room`) where one is given.

    A group that is one expert as it is needs no room: its weights are views.
    """
    if group.is_one_expert:
        return {name: weight[group.reference] for name, weight in stack.weights.items()}
    made = room or new_room(stack)
    if group.rule:
        shares = torch.tensor(group.shares, dtype=torch.float32, device=stack.index_map.device)
        rule: MergeMethod = merge_method(group.rule)
        for name, members in aligned.members(number, group.members).items():
            made[name].copy_(rule(members, shares))
        return made
    orders = [torch.from_numpy(aligned.order(number, group.reference, member)).to(stack.index_map.device) for member in group.members]
    for name, weight in stack.weights.items():
        _write_weighted_sum(weight, hidden_axis(name), group, orders, made[name])
    return made


def new_room(stack: ExpertStack) -> dict[str, Tensor]:
    """Memory for one merged expert."""
    return {name: torch.empty(weight.shape[1:], dtype=weight.dtype, device=weight.device) for name, weight in stack.weights.items()}


def is_unmerged(stack: ExpertStack, plan: LayerPlan) -> bool:
    return plan.groups == tuple((expert,) for expert in range(stack.num_kept))


def index_map(stack: ExpertStack, plan: LayerPlan) -> Tensor:
    return torch.tensor(plan.index_map, dtype=torch.int64, device=stack.index_map.device)


def _ingredients(group: tuple[int, ...], weights: tuple[float, ...], method: str, shares: MergeShares | None) -> Ingredients:
    if len(group) == 1:
        return Ingredients(group[0], group, (1.0,))
    if shares is None:
        return Ingredients(group[0], group, weights, method)
    counted = [(member, share) for member, share in zip(group, shares(weights), strict=True) if share]
    return Ingredients(group[0], tuple(member for member, _ in counted), tuple(share for _, share in counted))


def _merged_layer(stack: ExpertStack, aligned: Aligned, number: int, plan: LayerPlan, groups: Sequence[Ingredients]) -> ExpertStack:
    if is_unmerged(stack, plan):
        return stack
    merged = {name: weight.new_empty((len(groups), *weight.shape[1:])) for name, weight in stack.weights.items()}
    for row, group in enumerate(groups):
        room = {name: weight[row] for name, weight in merged.items()}
        made = merged_group(stack, aligned, number, group, room)
        if made is not room:
            for name, weight in made.items():
                merged[name][row] = weight
    return ExpertStack(merged, index_map(stack, plan))


def _write_weighted_sum(weight: Tensor, axis: int, group: Ingredients, orders: Sequence[Tensor], made: Tensor) -> None:
    """Σ share · member, its hidden units in the reference's order, summed in float32: one expert's matrix in the model's layout.

    Rows are hidden units, so that a sum over reordered members is a bag of rows: each is read once and no reordered copy is made. A part
    at a time, which is turned and cast on its way from the cache.
    """
    rows = weight.transpose(1, 2) if axis == 2 else weight
    into = made.T if axis == 2 else made
    members: Sequence[int] = group.members
    if rows.dtype != torch.float32 or not rows.is_contiguous():
        rows = torch.stack([_plain(rows[member]) for member in members])
        members = range(len(members))
    num_units, width = rows.shape[1], rows[0, 0].numel()
    table = rows.reshape(-1, width)
    places = torch.stack([order + member * num_units for member, order in zip(members, orders, strict=True)], 1)
    shares = torch.tensor(group.shares, dtype=torch.float32, device=rows.device).expand(num_units, -1).contiguous()
    part = max(1, _PART_BYTES // (4 * width))
    for begin in range(0, num_units, part):
        of_part = slice(begin, begin + part)
        summed = F.embedding_bag(places[of_part], table, mode="sum", per_sample_weights=shares[of_part])
        into[of_part] = summed.view(into[of_part].shape)


def _plain(matrix: Tensor) -> Tensor:
    """Contiguous float32."""
    return matrix.to(torch.float32, memory_format=torch.contiguous_format)
