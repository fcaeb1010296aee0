"""Makes merge plans: which experts of each layer become one, with which weights, within a byte budget exactly.

Planning touches statistics only, never weights; the same inputs give the same plan and the same `plan_id` (M-SMoE, arXiv 2310.01334;
the edge's memory as the target size is the change of the ONTO/JTOM paper).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from services.core.merging.allocations import TaskUse
from services.core.merging.allocations import allocation as allocation_named
from services.core.merging.budget import filled, num_slots, plan_bytes
from services.core.merging.errors import BudgetError, CountsError, MixError
from services.core.merging.groupings import Groups
from services.core.merging.groupings import grouping as grouping_named
from services.core.merging.mix import checked_shares
from services.core.merging.present import KEEP_GAIN, PresentLayer, present_layers
from services.core.merging.snapping import largest_remainder
from services.core.merging.values import BaseProfiles, Budget, Frequencies, LayerPlan, LayerStatistics, MergePlan, normalised

__all__ = ["BudgetError", "MixError", "make_plan", "mixed_statistics", "plan_bytes"]

COEFFICIENT_STEPS = 64


def make_plan(
    profiles: BaseProfiles,
    mix: Mapping[str, float],
    budget: Budget,
    *,
    allocation: str = "mc-smoe",
    grouping: str = "router-logits",
    method: str = "m-smoe",
    present: MergePlan | None = None,
    frequencies: Frequencies | None = None,
    recovery_steps: int = 0,
    floor: int = 1,
    keep_gain: float = KEEP_GAIN,
) -> MergePlan:
    """The plan for traffic of the given mix. A budget that holds every expert gives the identity plan, without recovery.

    `frequencies` stand in for those of the mix (paper mode); layers where they are all zero use the mix's. `floor`: experts that
    every layer keeps. `present`: the plan an edge holds; a change of a group must then gain more than `keep_gain` (see `present.py`).
    Raises BudgetError with the smallest budget that works, MixError, and OptionError for unknown names.
    """
    allocate, group = allocation_named(allocation), grouping_named(grouping)
    statistics = mixed_statistics(profiles, mix, uniform_when_empty=frequencies is not None)
    use = _usage(statistics, frequencies)
    num_layers, num_experts = use.shape
    if len(budget.expert_bytes) != num_layers:
        raise CountsError(f"budget has {len(budget.expert_bytes)} layers of experts, the profiles of {profiles.base} have {num_layers}")
    held = present_layers(present, profiles.base, num_layers, num_experts, keep_gain)
    favoured = np.stack([layer.favoured(row) for layer, row in zip(held, use, strict=True)])
    ranking = allocate.ranking(favoured, [] if frequencies is not None else _task_uses(profiles, mix), num_slots(budget))
    kept = filled(budget, allocate.slot_order(ranking, floor), floor, num_experts)
    layers = tuple(_layer_plan(group(ranking[i], statistics[i], kept[i], held[i].bonus), use[i], held[i]) for i in range(num_layers))
    unmerged = sum(kept) == num_layers * num_experts
    return MergePlan(profiles.base, method, layers, 0 if unmerged else recovery_steps)


def mixed_statistics(profiles: BaseProfiles, mix: Mapping[str, float], *, uniform_when_empty: bool = False) -> tuple[LayerStatistics, ...]:
    """Statistics of the mix, one a layer: Σ_k share_k · statistics_k, exact because counts and Gram matrices add.

    Statistics are per task (or sums over equally many tasks of each type), so that shares are shares of tasks.
    """
    shares: Mapping[str, float] = mix
    if not mix and uniform_when_empty:
        shares = {t: 1 / len(profiles.task_types) for t in profiles.task_types}
    checked = checked_shares(shares, profiles.task_types)
    per_task = [(share, profiles.statistics[t]) for t, share in checked.items()]
    return tuple(
        LayerStatistics(
            counts=np.sum([share * layers[i].counts for share, layers in per_task], axis=0),
            gram=np.sum([share * layers[i].gram for share, layers in per_task], axis=0),
        )
        for i in range(len(per_task[0][1]))
    )


def coefficients(weights: NDArray[np.float64]) -> tuple[float, ...]:
    """Merge coefficients of one group: proportional to frequency, snapped to 1/64 and summing to exactly 1; uniform when all are zero.

    Σ f_i W_i / Σ f_i of M-SMoE; the released code's epsilon would turn a group that was never used into zeros.
    """
    if weights.sum() <= 0:
        return tuple([1 / len(weights)] * len(weights))
    return tuple(float(s) / COEFFICIENT_STEPS for s in largest_remainder(weights, COEFFICIENT_STEPS))


def _task_uses(profiles: BaseProfiles, mix: Mapping[str, float]) -> list[TaskUse]:
    return [TaskUse(task_type, share, profiles.frequencies(task_type)) for task_type, share in sorted(mix.items())]


def _usage(statistics: tuple[LayerStatistics, ...], frequencies: Frequencies | None) -> Frequencies:
    of_mix = normalised(np.stack([layer.counts for layer in statistics]))
    if frequencies is None:
        return of_mix
    if frequencies.shape != of_mix.shape:
        raise CountsError(f"raw_frequencies have shape {frequencies.shape}, the base model has {of_mix.shape}")
    seen = frequencies.sum(axis=1, keepdims=True) > 0
    return np.where(seen, normalised(frequencies), of_mix)


def _layer_plan(groups: Groups, usage: NDArray[np.float64], held: PresentLayer) -> LayerPlan:
    chosen = [held.kept(members, coefficients(usage[list(members)])) for members in groups]
    chosen.sort(key=lambda group: group[0][0])
    return LayerPlan(tuple(members for members, _ in chosen), tuple(weights for _, weights in chosen))
