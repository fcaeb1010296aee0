"""Groups of a layer's experts made into one expert each, by a rule for their weights: what the compressions that merge have in common.

Which experts form a group, and the rule, come from the compression; alignment, packing and bytes are the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.core.merging.plan import coefficients, make_plan
from services.core.merging.values import Budget, ExpertForm, MergePlan
from services.model.compressions import Compressed
from services.model.evidence import TRAFFIC, Evidence, ExpertTokens, outputs
from services.model.families.base import OUT, ExpertStack
from services.model.fitting import LayerFitter, form_bytes, least_squares
from services.model.merges import MergeMethod

ALL_EXPERTS_TOKENS = 1024  # of a layer, on which every expert is run


@dataclass(frozen=True, slots=True)
class Group:
    """Members, the one that others are aligned to first, and their coefficients, which sum to 1; all 0: they get nothing, for no bytes."""

    members: tuple[int, ...]
    coefficients: tuple[float, ...]


Grouping = Callable[[int, int], Sequence[Group]]  # number of a layer, experts it keeps
Make = Callable[[int, Group], dict[str, Tensor]]  # the merged expert of a layer's group, float32
Solve = Callable[[int, Group, dict[str, Tensor]], Tensor]  # a merged expert's new projection out of its hidden units


def weighted(members: Sequence[int], weights: NDArray[np.float64]) -> Group:
    """A group whose coefficients go by `weights` of all experts."""
    return Group(tuple(members), coefficients(weights[list(members)]))


def full_form(stack: ExpertStack, bits: int) -> ExpertForm:
    return ExpertForm(bits, int(stack.weights[OUT].shape[2]))


def plan_for(evidence: Evidence, room_bytes: int, bits: int, allocation: str) -> MergePlan:
    """The core's plan for this traffic; its groups are those of router logits. BudgetError where a layer would keep none."""
    sizes = tuple(form_bytes(layer.stack, full_form(layer.stack, bits)) for layer in evidence.layers)
    return make_plan(evidence.profiles, {TRAFFIC: 1.0}, Budget(room_bytes, 0, sizes), allocation=allocation)


def planned(plan: MergePlan) -> Grouping:
    """The groups that the core's plan has."""
    return lambda number, _: [Group(m, c) for m, c in zip(plan.layers[number].groups, plan.layers[number].coefficients, strict=True)]


def merged(evidence: Evidence, plan: MergePlan, bits: int, grouping: Grouping, rule: MergeMethod, solve: Solve | None = None) -> Compressed:
    """As many experts a layer as `plan` keeps there, grouped by `grouping`, merged by `rule`, held in `bits`."""
    return held_as(evidence, plan, bits, grouping, lambda number, group: _one_expert(evidence, number, group, rule, solve))


def held_as(evidence: Evidence, plan: MergePlan, bits: int, grouping: Grouping, make: Make) -> Compressed:
    """`merged` for a rule that needs more than its members' weights."""
    stacks, num_bytes, num_kept = [], 0, 0
    for number, layer in enumerate(evidence.layers):
        groups = grouping(number, len(plan.layers[number].groups))
        index_map = torch.empty(layer.num_experts, dtype=torch.int64)
        for row, group in enumerate(groups):
            index_map[list(group.members)] = row
        experts = [make(number, group) for group in groups]
        weights = {name: torch.stack([expert[name] for expert in experts]) for name in layer.stack.weights}
        held = sum(any(group.coefficients) for group in groups)
        num_kept += held
        num_bytes += held * form_bytes(layer.stack, full_form(layer.stack, bits))
        stacks.append(_held_in(evidence, number, ExpertStack(weights, index_map), groups, bits))
    return Compressed(tuple(stacks), num_bytes, f"{num_kept} of {sum(layer.num_experts for layer in evidence.layers)} experts, {bits} bits")


def _one_expert(evidence: Evidence, number: int, group: Group, rule: MergeMethod, solve: Solve | None) -> dict[str, Tensor]:
    stack = evidence.layers[number].stack
    if not any(group.coefficients):
        return {name: torch.zeros_like(weight[0], dtype=torch.float32) for name, weight in stack.weights.items()}
    if len(group.members) == 1:
        return {name: weight[group.members[0]].float() for name, weight in stack.weights.items()}
    shares = torch.tensor(group.coefficients)
    expert = {name: rule(members, shares) for name, members in evidence.aligned.members(number, group.members).items()}
    if solve is not None:
        expert[OUT] = solve(number, group, expert)
    return expert


def _held_in(evidence: Evidence, number: int, stack: ExpertStack, groups: Sequence[Group], bits: int) -> ExpertStack:
    """Packed on the tokens of each group, and unpacked into the model's dtype."""
    dtype = next(iter(evidence.layers[number].stack.weights.values())).dtype
    if bits < 16:
        shown = [_joined(evidence.layers[number].tokens(group.members)) for group in groups]
        fitter = LayerFitter(evidence.rule, stack, shown, torch.float16)
        fitted = [one.weights() for one in fitter.fitted(range(len(groups)), full_form(stack, bits))]
        stack = ExpertStack({name: torch.stack([one[name] for one in fitted]) for name in stack.weights}, stack.index_map)
    elif dtype == torch.float32:
        stack = ExpertStack({name: weight.half() for name, weight in stack.weights.items()}, stack.index_map)
    return ExpertStack({name: weight.to(dtype) for name, weight in stack.weights.items()}, stack.index_map)


def _joined(tokens: Sequence[ExpertTokens]) -> ExpertTokens:
    """Own tokens of all, with the background of the first."""
    first = tokens[0]
    inputs = torch.cat([*(shown.own.inputs for shown in tokens), first.inputs[first.num_own :]])
    weights = torch.cat([*(shown.own.weights for shown in tokens), first.weights[first.num_own :]])
    return ExpertTokens(inputs, weights, sum(shown.num_own for shown in tokens))


def solved_for_members(evidence: Evidence) -> Solve:
    """Least squares over the tokens of a group's members, each with its own expert's outputs as the target."""

    def solve(number: int, group: Group, expert: dict[str, Tensor]) -> Tensor:
        inputs, targets, weights = member_targets(evidence, number, group.members)
        hidden = outputs(evidence.rule, expert, inputs)[1][OUT]
        return least_squares(hidden, targets, weights, expert[OUT])

    return solve


def member_targets(evidence: Evidence, number: int, members: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, wanted outputs and squared gates of all tokens that the router sends to `members`."""
    layer = evidence.layers[number]
    own = [shown.own for shown in layer.tokens(members)]
    targets = [outputs(evidence.rule, original(layer.stack, member), shown.inputs)[0] for member, shown in zip(members, own, strict=True)]
    return torch.cat([shown.inputs for shown in own]), torch.cat(targets), torch.cat([shown.weights for shown in own])


def original(stack: ExpertStack, expert: int) -> dict[str, Tensor]:
    return {name: weight[expert].float() for name, weight in stack.weights.items()}


def saliency(evidence: Evidence, number: int) -> NDArray[np.float64]:
    """REAP's (Lasby et al., arXiv 2510.13999, eq. 9): mean of gate · ‖f(x)‖ over the tokens an expert gets, (num_experts,)."""
    layer = evidence.layers[number]
    found = np.zeros(layer.num_experts)
    for expert, shown in enumerate(layer.tokens()):
        if shown.num_own:
            made = outputs(evidence.rule, original(layer.stack, expert), shown.own.inputs)[0]
            found[expert] = float((made.norm(dim=1) * shown.own.weights.sqrt()).mean())
    return found


def mean_outputs(evidence: Evidence, number: int, by_gates: bool) -> NDArray[np.float64]:
    """(num_experts, d_model): every expert's mean output over a sample of *all* tokens of its layer, plain or weighted by its gate."""
    layer = evidence.layers[number]
    every = max(1, len(layer.inputs) // ALL_EXPERTS_TOKENS)
    inputs, gates = layer.inputs[::every], layer.logits[::every].softmax(1)
    means = []
    for expert in range(layer.num_experts):
        made = outputs(evidence.rule, original(layer.stack, expert), inputs)[0]
        means.append((made * gates[:, expert, None]).mean(0) if by_gates else made.mean(0))
    return torch.stack(means).double().numpy()
