"""One base a layer and a low-rank difference for each expert, W_i = base + A_i B_i: every routing choice stays (D²-MoE, arXiv 2502.17298).

The base is the mean weighted by use, of experts aligned to the most used. Differences are cut by the SVD that is best on each expert's own
tokens (whitened, as in SVD-LLM, arXiv 2403.07378), in the order of the matrices' use. Ranks are one number, the largest that fits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from services.core.merging.errors import BudgetError
from services.model.compensation import low_rank
from services.model.compressions import Compressed
from services.model.evidence import Evidence, ExpertTokens, outputs
from services.model.families.base import OUT, ExpertStack
from services.model.families.layers import Expert
from services.model.fitting import form_bytes, least_squares, second_moments
from services.model.groups import full_form
from services.model.merges.m_smoe import merge

BITS = (16,)
_FACTOR_BYTES = 2


def compress(evidence: Evidence, room_bytes: int, bits: int) -> Compressed:
    base_bytes = sum(form_bytes(layer.stack, full_form(layer.stack, bits)) for layer in evidence.layers)
    rank_bytes = sum(layer.num_experts * _bytes_a_rank(layer.stack) for layer in evidence.layers)
    rank = (room_bytes - base_bytes) // rank_bytes
    if rank < 0:
        raise BudgetError(base_bytes, room_bytes)
    if bits < 16:
        raise ValueError(f"bits: {bits}; a shared base and its differences are held in 16")
    stacks = [_layer(evidence, number, rank) for number in range(len(evidence.layers))]
    return Compressed(tuple(stacks), base_bytes + rank * rank_bytes, f"one base a layer, rank {rank}")


def _bytes_a_rank(stack: ExpertStack) -> int:
    return sum(_FACTOR_BYTES * (weight.shape[1] + weight.shape[2]) for weight in stack.weights.values())


def _layer(evidence: Evidence, number: int, rank: int) -> ExpertStack:
    layer, usage = evidence.layers[number], evidence.usage[number]
    order = sorted(range(layer.num_experts), key=lambda expert: (-usage[expert], expert))
    aligned = evidence.aligned.members(number, order)
    shares = torch.from_numpy(usage[order]).float()
    base = {name: merge(members, shares) for name, members in aligned.items()}
    tokens = layer.tokens()
    made = [
        near_base(evidence.rule, base, {name: members[row] for name, members in aligned.items()}, tokens[expert], rank)
        for row, expert in enumerate(order)
    ]
    index_map = torch.empty(layer.num_experts, dtype=torch.int64)
    index_map[order] = torch.arange(layer.num_experts)
    stored = {name: weight.dtype for name, weight in layer.stack.weights.items()}
    return ExpertStack({name: torch.stack([one[name] for one in made]).to(dtype) for name, dtype in stored.items()}, index_map)


def near_base(rule: Expert, base: dict[str, Tensor], exact: dict[str, Tensor], shown: ExpertTokens, rank: int) -> dict[str, Tensor]:
    """An expert as its base plus differences of `rank`."""
    wanted, seen = outputs(rule, exact, shown.inputs)
    now = dict(exact)
    for name in seen:
        inputs = outputs(rule, now, shown.inputs)[1][name]
        target = least_squares(inputs, wanted, shown.weights, exact[name]) if name == OUT else exact[name]
        left, right = low_rank(target - base[name], second_moments(inputs, shown.weights), rank)
        now[name] = base[name] + left.half().float() @ right.half().float()
    return now
