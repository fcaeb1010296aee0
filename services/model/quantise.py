"""Experts rounded to few bits: the rival that every merge is judged against at equal bytes (spec/merging.md B2).

Asymmetric round to nearest in groups of 32 weights; the range of each group is shrunk by the factor that leaves the least
squared error. One bit is a sign times the group's mean absolute value. Weights come back in the model's dtype: what is measured is the
answer's loss and the bytes that a packed form would take.
"""

from __future__ import annotations

import torch
from torch import Tensor

from services.model.families.base import ExpertStack, MoeModel
from services.model.memory import unique_bytes

GROUP_WEIGHTS = 32
_PARAMETER_BITS = 16  # a scale or a zero point, held as float16
_SHRINK_FACTORS = tuple(1.0 - 0.02 * step for step in range(36))  # 1.0 to 0.3


def bits_per_weight(bits: int, group_weights: int = GROUP_WEIGHTS) -> float:
    """Bits a weight takes with its share of scale and zero point; one bit needs no zero point."""
    return bits + (1 if bits == 1 else 2) * _PARAMETER_BITS / group_weights


def quantised_bytes(model: MoeModel, bits: int, group_weights: int = GROUP_WEIGHTS) -> int:
    """Bytes of the model with its experts packed at `bits`, everything else as it is."""
    experts = sum(_packed_bytes(weight, bits, group_weights) for stack in model.experts for weight in stack.weights.values())
    return unique_bytes(model) - sum(stack.num_bytes() for stack in model.experts) + experts


def _packed_bytes(weight: Tensor, bits: int, group_weights: int) -> int:
    num_groups = weight.numel() // weight.shape[-1] * -(-weight.shape[-1] // group_weights)
    parameters = (1 if bits == 1 else 2) * _PARAMETER_BITS * num_groups
    return -(-(weight.numel() * bits + parameters) // 8)


def bits_for_budget(model: MoeModel, budget_bytes: int, group_weights: int = GROUP_WEIGHTS) -> int | None:
    """The most bits, 8 to 1, at which the unmerged model fits; none if not even one does."""
    return next((bits for bits in range(8, 0, -1) if quantised_bytes(model, bits, group_weights) <= budget_bytes), None)


def quantised(model: MoeModel, bits: int, group_weights: int = GROUP_WEIGHTS) -> MoeModel:
    """The same model with its experts rounded to `bits`, 1 to 8."""
    if not 1 <= bits <= 8:
        raise ValueError(f"bits: {bits} is not in 1 to 8")
    return model.with_experts(
        [
            ExpertStack({name: rounded(weight, bits, group_weights) for name, weight in stack.weights.items()}, stack.index_map)
            for stack in model.experts
        ]
    )


def zeroed(model: MoeModel) -> MoeModel:
    """The same model with every expert zero: the control that says which tasks need experts at all."""
    return model.with_experts(
        [
            ExpertStack({name: torch.zeros_like(weight) for name, weight in stack.weights.items()}, stack.index_map)
            for stack in model.experts
        ]
    )


def rounded(weight: Tensor, bits: int, group_weights: int = GROUP_WEIGHTS) -> Tensor:
    """`weight` after rounding along its last axis, in its own dtype."""
    width = weight.shape[-1]
    padding = -width % group_weights
    exact = weight.detach().float()
    if padding:
        exact = torch.cat([exact, exact[..., -1:].expand(*exact.shape[:-1], padding)], dim=-1)
    groups = exact.reshape(-1, group_weights)
    near = _signs(groups, padding, width) if bits == 1 else _nearest(groups, bits)
    return near.reshape(*weight.shape[:-1], width + padding)[..., :width].to(weight.dtype).contiguous()


def _signs(groups: Tensor, padding: int, width: int) -> Tensor:
    valid = torch.ones_like(groups)
    if padding:
        per_row = (width + padding) // groups.shape[1]
        valid.view(-1, per_row, groups.shape[1])[:, -1, groups.shape[1] - padding :] = 0.0
    mean = (groups.abs() * valid).sum(1, keepdim=True) / valid.sum(1, keepdim=True)
    return torch.where(groups < 0, -1.0, 1.0) * mean.half().float()


def _nearest(groups: Tensor, bits: int) -> Tensor:
    """The least-squares choice over shrunk ranges, with scale and zero point rounded to float16."""
    low, high = groups.aminmax(dim=1, keepdim=True)
    middle, half_range = (low + high) / 2, (high - low) / 2
    steps = 2**bits - 1
    best = groups
    least = torch.full_like(low, float("inf"))
    for factor in _SHRINK_FACTORS:
        zero = (middle - half_range * factor).half().float()
        scale = (half_range * (2 * factor / steps)).half().float().clamp(min=torch.finfo(torch.float16).tiny)
        near = ((groups - zero) / scale).round().clamp(0, steps) * scale + zero
        error = (near - groups).square().sum(1, keepdim=True)
        better = error < least
        best = torch.where(better, near, best)
        least = torch.where(better, error, least)
    return best
