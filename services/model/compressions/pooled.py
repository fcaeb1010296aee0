"""Groups that keep their members' hidden units rather than average them: pooled, the least needed go, and what leads out is solved anew.

Averaging makes hidden units that belong to no member; a pool of all members' units holds every member exactly, and is cut to the size of
one expert by what the others can make up for (`narrowing.py`), on the tokens of the whole group. Groups and allocation are M-SMoE's. Ours;
ZipIt (Stoica et al., ICLR 2024) pools too, and then averages pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.model.alignment import hidden_axis
from services.model.compressions import Compressed
from services.model.evidence import Evidence, outputs
from services.model.families.base import OUT
from services.model.families.layers import Expert
from services.model.fitting import least_squares, second_moments
from services.model.groups import Group, held_as, member_targets, original, plan_for, planned
from services.model.narrowing import units_by_need

MOST_POOLED = 4  # experts whose units are looked at together; larger groups are cut by halves first


@dataclass(frozen=True, slots=True)
class _Pool:
    """Hidden units of several experts; `shares` (num_units,) are the coefficients of the members they come from."""

    weights: dict[str, Tensor]
    shares: Tensor

    def of(self, units: Tensor) -> _Pool:
        weights = {name: weight.index_select(hidden_axis(name) - 1, units) for name, weight in self.weights.items()}
        return _Pool(weights, self.shares[units])


def compress(evidence: Evidence, room_bytes: int, bits: int) -> Compressed:
    plan = plan_for(evidence, room_bytes, bits, "mc-smoe")
    return held_as(evidence, plan, bits, planned(plan), lambda number, group: pooled(evidence, number, group))


def pooled(evidence: Evidence, number: int, group: Group) -> dict[str, Tensor]:
    """One expert of the usual width for the whole group."""
    stack = evidence.layers[number].stack
    members = [original(stack, member) for member in group.members]
    inputs, targets, weights = member_targets(evidence, number, group.members)
    if len(members) == 1 or len(inputs) == 0:
        return members[0]
    width = members[0][OUT].shape[1]
    pools = [_Pool(member, torch.full((width,), share)) for member, share in zip(members, group.coefficients, strict=True)]
    kept = _cut(evidence.rule, pools, width, width, (inputs, targets, weights)).weights
    hidden = outputs(evidence.rule, kept, inputs)[1][OUT]
    return {**kept, OUT: least_squares(hidden, targets, weights, kept[OUT])}


def _cut(rule: Expert, pools: Sequence[_Pool], width: int, num_units: int, shown: tuple[Tensor, Tensor, Tensor]) -> _Pool:
    """The `num_units` of all pools that the group's tokens need most. `width` is that of one expert."""
    if len(pools) > MOST_POOLED:
        half = len(pools) // 2
        room = width * MOST_POOLED // 2
        pools = [_cut(rule, part, width, room, shown) for part in (pools[:half], pools[half:])]
    weights = {name: torch.cat([pool.weights[name] for pool in pools], dim=hidden_axis(name) - 1) for name in pools[0].weights}
    every = _Pool(weights, torch.cat([pool.shares for pool in pools]))
    if len(every.shares) <= num_units:
        return every
    inputs, targets, token_weights = shown
    hidden = outputs(rule, weights, inputs)[1][OUT]
    out = least_squares(hidden, targets, token_weights, weights[OUT] * every.shares)
    need = units_by_need(out[None], second_moments(hidden, token_weights)[None])[0]
    return every.of(need[:num_units].sort().values)
