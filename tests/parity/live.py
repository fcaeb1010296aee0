"""A live run for the simulator to predict: an embedded stack in a process of its own, JTOM, a load that drifts. Judges nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from loadgen.child import ChildStack
from loadgen.cli.places import model_or_demo
from loadgen.demo import CONTROLLER, WORKER
from loadgen.demo_plan import led_by
from loadgen.options import ReplayOptions
from loadgen.recorded import RECORDS, merge_rules, write_run
from loadgen.replay import replay
from loadgen.results import ReplayResult
from loadgen.stack_child import MERGE, serve_stack
from loadgen.updates import UpdateFeed
from moedge.v1 import events_pb2
from services.core.workload.arrivals import poisson
from services.core.workload.load import User, plan_load
from services.core.workload.mixes import DriftingMix, MixPhase, RegionalMix
from services.runtime.clock import SystemClock
from services.tasks.sources import open_tasks

EDGES = Path(__file__).resolve().parents[2] / "infra/edges/devices.toml"
RATE_PER_S, DURATION_S, DRIFT_AT_S = 14.0, 70.0, 12.0
NUM_USERS = 12
# Who leads where, before and after. One region changes: when two do, what an edge learns turns on a report that comes a second earlier or
# later, and runs of the same load differ by 2 to 3 % in quality among themselves.
LEADERS = {"west": ("alternative",), "centre": ("facts", "sentence"), "east": ("pronoun",)}


def drifting(task_types: tuple[str, ...]) -> RegionalMix:
    starts = (0.0, DRIFT_AT_S)
    return RegionalMix(
        {
            region: DriftingMix(
                tuple(MixPhase(start, led_by([leader], task_types)) for start, leader in zip(starts, leaders, strict=False))
            )
            for region, leaders in LEADERS.items()
        }
    )


async def live_run(folder: Path, cache: Path, seed: int) -> ReplayResult:
    """Serves what `seed` says on three devices of stated step times, for a little more than a minute. `cache` keeps builds."""
    items = open_tasks("toy", "heldout")
    mix = drifting(items.task_types)
    settings: dict[str, Any] = {
        "model": model_or_demo(None),
        "edges": EDGES,
        "trigger": "jtom",
        "cache_dir": cache,
        "regional_mixes": {region: of.at(0.0) for region, of in mix.by_region.items()},
        "controller": {**CONTROLLER, "min_tokens": 120, "record": folder / "merge.jsonl"},
        "worker": dict(WORKER),
    }
    users = [User(f"user-{n:02d}", sorted(LEADERS)[n % len(LEADERS)]) for n in range(NUM_USERS)]
    ids = {task_type: [item.item_id for item in items.of_type(task_type)] for task_type in items.task_types}
    arrivals = poisson(RATE_PER_S, DURATION_S, np.random.default_rng([seed, 0]))
    plan = plan_load(ids, mix, arrivals, users, np.random.default_rng([seed, 1]))
    feed, clock = UpdateFeed(), SystemClock()

    def hear(kind: str, body: bytes) -> None:
        if kind == MERGE:
            feed.put(events_pb2.MergeEvent.FromString(body), clock.now_s())

    async with ChildStack(partial(serve_stack, settings), hear, niceness=0) as addresses:
        options = ReplayOptions(mix=mix, records_path=folder / RECORDS)
        result = await replay(addresses["broker"], plan, items, options, feed=feed, clock=clock)
    result = replace(result, merging=merge_rules(settings))
    write_run(folder, result)
    return result


if __name__ == "__main__":
    import sys

    asyncio.run(live_run(Path(sys.argv[1]), Path(sys.argv[1]).parent / "cache", int(sys.argv[2])))
