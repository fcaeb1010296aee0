"""Measures the unmerged model at few bits, for the simulator: what it scores and shows at every width, and with experts dropped.

Rows of a profile beside its merged versions. Step times are not measured: rounded weights come back in the model's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from loadgen.simulator.measured import packed, rounded_quality
from services.model.calibration import Measured
from services.model.checkpoint import BaseModel
from services.model.families.base import ExpertStack, MoeModel
from services.model.manifest import TaskProfile
from services.model.memory import budget_for
from services.model.profile import CURVE_BITS
from services.model.quantise import quantised, quantised_bytes, zeroed

Score = Callable[[MoeModel], Measured]
Tell = Callable[[str], None]


def unmerged_rows(base: BaseModel, full: Measured, budgets_bytes: Sequence[int], scores: Score, tell: Tell) -> dict[str, Any]:
    """The key `unmerged` of a profile: the zero-expert control, and a row for 8 bits to 1. Where a budget holds not even 1 bit of every
    expert there is a row more, with the experts that `full` used least dropped until it fits (merging.md B2: the most used as signs)."""
    model = base.model
    tell("unmerged, zero experts")
    zero = scores(zeroed(model)).quality
    rows = []
    for bits in CURVE_BITS:
        tell(f"unmerged, {bits} bits")
        rounded = quantised(model, bits)
        rows.append(_row(bits, 0, quantised_bytes(model, bits), scores(rounded)))
    for num_dropped, size in _drops(model, budgets_bytes):
        tell(f"unmerged, 1 bit, {num_dropped} experts dropped")
        rows.append(_row(1, num_dropped, size, scores(_without(rounded, least_used(full.profiles, num_dropped)))))
    return {
        "dtype": base.dtype,
        "full_bytes": base.full_bytes,
        "non_expert_bytes": budget_for(model, 0).non_expert_bytes,
        "zero_expert_quality": rounded_quality(zero),
        "rows": rows,
    }


def least_used(profiles: Mapping[str, TaskProfile], num: int) -> list[tuple[int, int]]:
    """(layer, expert) of the `num` with the fewest tokens over one task of each type. Ties: the first."""
    counts = np.sum([profiles[t].counts_per_task for t in sorted(profiles)], axis=0)  # (num_layers, num_experts)
    order = np.argsort(counts, axis=None, kind="stable")[:num]
    return [(int(layer), int(expert)) for layer, expert in zip(*np.unravel_index(order, counts.shape), strict=True)]


def _drops(model: MoeModel, budgets_bytes: Sequence[int]) -> list[tuple[int, int]]:
    """(experts dropped, bytes left) for every budget below one bit. A dropped expert weighs nothing; experts are of one size."""
    whole, rest = quantised_bytes(model, 1), budget_for(model, 0).non_expert_bytes
    num_experts = sum(stack.num_kept for stack in model.experts)
    each = (whole - rest) / num_experts
    found = set()
    for budget_bytes in budgets_bytes:
        if budget_bytes < whole:
            kept = max(int((budget_bytes - rest) // each), 0)
            found.add((num_experts - kept, rest + round(kept * each)))
    return sorted(found)


def _without(model: MoeModel, experts: Sequence[tuple[int, int]]) -> MoeModel:
    """The same model with these experts zero: a token routed to one passes by, as it does by one that is not held."""
    stacks = [ExpertStack({name: weight.clone() for name, weight in stack.weights.items()}, stack.index_map) for stack in model.experts]
    for layer, expert in experts:
        for weight in stacks[layer].weights.values():
            weight[expert] = 0.0
    return model.with_experts(stacks)


def _row(bits: int, num_dropped: int, model_bytes: int, measured: Measured) -> dict[str, Any]:
    counts = {t: packed(profile.counts_per_task) for t, profile in sorted(measured.profiles.items())}
    return {
        "bits": bits,
        "experts_dropped": num_dropped,
        "model_bytes": model_bytes,
        "quality": rounded_quality(measured.quality),
        "counts": counts,
    }
