"""Carries out a merge plan on a base model: the expert stacks of the merged model. Plans are made in core; tensor rules live in merges/."""

from __future__ import annotations

import torch

from services.core.merging.values import LayerPlan, MergePlan
from services.model.alignment import Aligned
from services.model.checkpoint import BaseModel
from services.model.families.base import ExpertStack
from services.model.merges import MergeMethod, merge_method


def merged_experts(base: BaseModel, aligned: Aligned, plan: MergePlan) -> list[ExpertStack]:
    """One stack a layer, in the base's dtype. A group of one keeps its expert's bytes; an unmerged layer is the base's own stack."""
    if len(plan.layers) != len(base.model.experts):
        raise ValueError(f"plan: {len(plan.layers)} layers for a model with {len(base.model.experts)} MoE layers; plan for this base model")
    method = merge_method(plan.method)
    return [
        _merged_layer(stack, aligned, number, layer, method)
        for number, (stack, layer) in enumerate(zip(base.model.experts, plan.layers, strict=True))
    ]


def _merged_layer(stack: ExpertStack, aligned: Aligned, number: int, plan: LayerPlan, method: MergeMethod) -> ExpertStack:
    if plan.forms:
        raise ValueError(f"plan: layer {number} asks for forms; a merge by {method.__module__} keeps experts as they are")
    if plan.groups == tuple((expert,) for expert in range(stack.num_kept)):
        return stack
    merged = {name: weight.new_empty((len(plan.groups), *weight.shape[1:])) for name, weight in stack.weights.items()}
    for row, (group, coefficients) in enumerate(zip(plan.groups, plan.coefficients, strict=True)):
        if len(group) == 1:
            for name, weight in stack.weights.items():
                merged[name][row] = weight[group[0]]
            continue
        weights = torch.tensor(coefficients, dtype=torch.float32, device=stack.index_map.device)
        for name, members in aligned.members(number, group).items():
            merged[name][row] = method(members, weights).to(merged[name].dtype)
    return ExpertStack(merged, torch.tensor(plan.index_map, dtype=torch.int64, device=stack.index_map.device))
