"""What the demonstration sends: each region asks mostly for one task type, and which one changes twice. Sends nothing."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from services.core.workload.arrivals import poisson
from services.core.workload.load import PlannedTask, User, plan_load
from services.core.workload.mixes import DriftingMix, MixPhase, RegionalMix
from services.runtime.edges import REGIONS
from services.tasks.values import TaskSet

FIRST_DRIFT, SECOND_DRIFT = 0.2, 0.6  # shares of the duration: the first phase needs only to show where both runs begin
LEADING_SHARE = 0.8
SHARE_STEPS = 20  # shares are multiples of 1/20, as merge requests are


@dataclass(frozen=True, slots=True)
class DemoLoad:
    mix: RegionalMix
    plan: tuple[PlannedTask, ...]


def regional_mix(task_types: Sequence[str], regions: Sequence[str], duration_s: float) -> RegionalMix:
    """Every region is led by a task type of its own, all types always present.

    At the first drift all regions but the first turn to types that led nowhere before; at the second the first region turns to what
    led the second at the start.
    """
    num = len(task_types)
    if num < 3:
        raise ValueError(f"task types are {', '.join(task_types)}: a mix that drifts needs at least 3")
    mixes = {}
    for n, region in enumerate(regions):
        leaders = [(0.0, n)]
        leaders.append((SECOND_DRIFT, n + 1) if n == 0 else (FIRST_DRIFT, n + len(regions) - 1))
        if len(regions) == 1:
            leaders = [(0.0, 0), (FIRST_DRIFT, 1), (SECOND_DRIFT, 2)]
        phases = [MixPhase(start * duration_s, led_by([task_types[leader % num]], task_types)) for start, leader in leaders]
        mixes[region] = DriftingMix(tuple(phases))
    return RegionalMix(mixes)


def led_by(leaders: Sequence[str], task_types: Sequence[str]) -> dict[str, float]:
    """Leaders share most of the tasks, the others the rest, in steps of 1/20."""
    others = [task_type for task_type in task_types if task_type not in leaders]
    steps = dict.fromkeys(leaders, round(LEADING_SHARE * SHARE_STEPS / len(leaders)))
    left = SHARE_STEPS - sum(steps.values())
    for n, task_type in enumerate(others):
        steps[task_type] = left // len(others) + (n < left % len(others))
    return {task_type: steps[task_type] / SHARE_STEPS for task_type in sorted(steps)}


def regions_of(edges: Any) -> tuple[str, ...]:
    """Regions that the edges have links from, those of the default edges in their order. `edges` as in `StackSettings.edges`."""
    match edges:
        case int():
            return REGIONS
        case tuple():
            names = {region for edge in edges for region in edge.regions}
        case _:
            tables = tomllib.loads(Path(edges).read_text(encoding="utf-8")).get("edges", [])
            names = {region for table in tables for region in table.get("regions", {})}
    return tuple(region for region in REGIONS if region in names) + tuple(sorted(names - set(REGIONS)))


def demo_load(items: TaskSet, regions: Sequence[str], *, num_tasks: int, duration_s: float, num_users: int, seed: int) -> DemoLoad:
    """The same for every run of a seed."""
    mix = regional_mix(items.task_types, regions, duration_s)
    users = [User(f"user-{n}", regions[n % len(regions)]) for n in range(num_users)]
    arrivals = poisson(num_tasks / duration_s, duration_s, np.random.default_rng([seed, 0]))
    ids = {task_type: [item.item_id for item in items.of_type(task_type)] for task_type in items.task_types}
    return DemoLoad(mix, plan_load(ids, mix, arrivals, users, np.random.default_rng([seed, 1])))
