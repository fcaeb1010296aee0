"""What the demonstration sends: a mix of task types that changes twice, and a Poisson load of users in regions. Sends nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.core.workload.arrivals import poisson
from services.core.workload.load import PlannedTask, User, plan_load
from services.core.workload.mixes import DriftingMix, MixPhase
from services.tasks.values import TaskSet

PHASE_STARTS = (0.0, 0.2, 0.6)  # shares of the duration: the first phase needs only to show where both runs begin
LEADING_SHARE = 0.8
SHARE_STEPS = 20  # shares are multiples of 1/20, as merge requests are


@dataclass(frozen=True, slots=True)
class DemoLoad:
    mix: DriftingMix
    plan: tuple[PlannedTask, ...]


def drifting_mix(task_types: Sequence[str], duration_s: float) -> DriftingMix:
    """Three phases, each led by two task types, all types always present; the last phase is led by neither leader of the first."""
    num = len(task_types)
    if num < 3:
        raise ValueError(f"task types are {', '.join(task_types)}: a mix that drifts needs at least 3")
    leaders = ((0, 1), (2 % num, 3 % num), (4 % num, 2 % num))
    shares = [led_by([task_types[n] for n in pair], task_types) for pair in leaders]
    return DriftingMix(tuple(MixPhase(start * duration_s, share) for start, share in zip(PHASE_STARTS, shares, strict=True)))


def led_by(leaders: Sequence[str], task_types: Sequence[str]) -> dict[str, float]:
    """Leaders share most of the tasks, the others the rest, in steps of 1/20."""
    others = [task_type for task_type in task_types if task_type not in leaders]
    steps = dict.fromkeys(leaders, round(LEADING_SHARE * SHARE_STEPS / len(leaders)))
    left = SHARE_STEPS - sum(steps.values())
    for n, task_type in enumerate(others):
        steps[task_type] = left // len(others) + (n < left % len(others))
    return {task_type: steps[task_type] / SHARE_STEPS for task_type in sorted(steps)}


def demo_load(items: TaskSet, regions: Sequence[str], *, num_tasks: int, duration_s: float, num_users: int, seed: int) -> DemoLoad:
    """The same for every run of a seed."""
    mix = drifting_mix(items.task_types, duration_s)
    users = [User(f"user-{n}", regions[n % len(regions)]) for n in range(num_users)]
    arrivals = poisson(num_tasks / duration_s, duration_s, np.random.default_rng([seed, 0]))
    ids = {task_type: [item.item_id for item in items.of_type(task_type)] for task_type in items.task_types}
    return DemoLoad(mix, plan_load(ids, mix, arrivals, users, np.random.default_rng([seed, 1])))
