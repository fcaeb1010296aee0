"""The demonstration: one drifting load, sent to fresh stacks with our updates, with the paper's and without any, and a report of all.

The stack runs in a process of its own, so that its computing cannot delay sends. It measures; it does not judge beyond the verdicts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from loadgen.activations import ActivationTotals, heat_maps
from loadgen.child import ChildStack
from loadgen.demo_plan import demo_load, regional_mix, regions_of
from loadgen.options import ReplayOptions
from loadgen.replay import replay
from loadgen.report.values import WITHOUT_UPDATES, HeatMap, ReportInput, UnmergedArm
from loadgen.report.write import write_report
from loadgen.results import ReplayResult
from loadgen.stack_child import ACTIVATIONS, MERGE, PHASE, serve_stack
from loadgen.units import in_bytes
from loadgen.unmerged import UnmergedRequest, unmerged_arms
from loadgen.updates import UpdateFeed
from loadgen.view import QuietView, ReplayView
from moedge.v1 import events_pb2, merger_pb2, merger_pb2_grpc
from services.core.merging.recipes import FITTED
from services.core.merging.values import Frequencies
from services.runtime.clock import Clock, SystemClock
from services.runtime.codec import rows_to_frequencies
from services.runtime.net import channel
from services.tasks.sources import open_tasks
from services.tasks.values import TaskSet

RUNS = (("portfolio", "portfolio"), ("jtom", "jtom"), (WITHOUT_UPDATES, "never"))  # name in the report, trigger
LIST_DEADLINE_S = 10.0
# Checks every few seconds instead of every twenty: the load lasts little more than a minute.
CONTROLLER: Mapping[str, Any] = {
    "interval_s": 3.0,
    "adjustment_s": 1.0,
    "cap_s": 5.0,
    "confirm_s": 2.5,
    "recent_tasks": 40,
    "min_tokens": 250,
    "memory_s": 40.0,
    "horizon_s": 60.0,
}
WORKER: Mapping[str, Any] = {"report_interval_s": 1.0}


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """`edges` is what `StackSettings.edges` takes: a number of default edges (small, medium, large), a file, or the edges themselves.

    `method`: how versions are built, a merge method or "fitted".
    """

    model: str
    out_dir: Path
    cache_dir: Path
    tasks: str = "toy"
    edges: Any = 3
    method: str = FITTED
    num_tasks: int = 1000
    duration_s: float = 78.0
    num_users: int = 12  # as many in each of three regions
    quality_scale: float = 1.0
    deadline_s: float = 60.0
    seed: int = 0
    dtype: str = "bfloat16"
    device: str = "cpu"
    torch_threads: int = 1
    unmerged_items_per_type: int = 80
    controller: Mapping[str, Any] = field(default_factory=lambda: dict(CONTROLLER))
    worker: Mapping[str, Any] = field(default_factory=lambda: dict(WORKER))


@dataclass(frozen=True, slots=True)
class DemoReport:
    """`data` is what `report.json` holds; `ok` when every verdict is."""

    directory: Path
    data: dict[str, Any]
    ok: bool


@dataclass(frozen=True, slots=True)
class _Measured:
    """One run with what the report needs of its stack."""

    result: ReplayResult
    heat_maps: tuple[HeatMap, ...]
    memory_bytes: Mapping[str, int]


async def demo(options: DemoOptions, view: ReplayView | None = None, clock: Clock | None = None) -> DemoReport:
    """The runs, one after the other, then what unmerged models would score, then the report in `options.out_dir`."""
    view, clock = view or QuietView(), clock or SystemClock()
    items = open_tasks(options.tasks, "heldout")
    runs: dict[str, _Measured] = {}
    for name, trigger in RUNS:
        view.say(f"{name}: a fresh stack, trigger {trigger}")
        runs[name] = await _run(name, trigger, options, items, view, clock)
    main = runs[RUNS[0][0]]
    view.say("scoring the unmerged model, quantised to each edge's memory")
    arms = await _unmerged(options, main.memory_bytes)
    view.say("writing the report")
    report = ReportInput(
        title="One model on three edges, while what users ask for drifts",
        runs={name: run.result for name, run in runs.items()},
        unmerged=arms,
        heat_maps=main.heat_maps,
        setup=_setup(options, main),
    )
    data = await asyncio.to_thread(write_report, options.out_dir, report, clock.wall())
    return DemoReport(options.out_dir, data, all(verdict["ok"] for verdict in data["verdicts"]))


async def _run(name: str, trigger: str, options: DemoOptions, items: TaskSet, view: ReplayView, clock: Clock) -> _Measured:
    feed, totals = UpdateFeed(), ActivationTotals()
    hear = _hear(feed, totals, view, clock)
    async with ChildStack(partial(serve_stack, _stack_settings(options, items, trigger)), hear) as addresses:
        load = demo_load(
            items,
            regions_of(options.edges),
            num_tasks=options.num_tasks,
            duration_s=options.duration_s,
            num_users=options.num_users,
            seed=options.seed,
        )
        replay_options = ReplayOptions(
            name=name, deadline_s=options.deadline_s, mix=load.mix, records_path=options.out_dir / f"records-{name}.jsonl"
        )
        result = await replay(addresses["broker"], load.plan, items, replay_options, view, feed=feed, clock=clock)
        profiles = await _profiles(addresses["merger"])
    memory_bytes = {sample.edge_id: sample.memory_bytes for sample in result.samples}
    return _Measured(result, heat_maps(result, totals, profiles), memory_bytes)


def _stack_settings(options: DemoOptions, items: TaskSet, trigger: str) -> dict[str, Any]:
    """All runs start from merges for the mix of the first phase, each edge for that of the region nearest to it."""
    mix = regional_mix(items.task_types, regions_of(options.edges), options.duration_s)
    return {
        "model": options.model,
        "tasks": options.tasks,
        "edges": options.edges,
        "trigger": trigger,
        "quality_scale": options.quality_scale,
        "dtype": options.dtype,
        "device": options.device,
        "torch_threads": options.torch_threads,
        "cache_dir": options.cache_dir,
        "initial_mix": mix.at(0.0),
        "regional_mixes": {region: of.at(0.0) for region, of in mix.by_region.items()},
        "merger": {"method": options.method},
        "controller": {"method": options.method, **options.controller},
        "worker": dict(options.worker),
    }


def _hear(feed: UpdateFeed, totals: ActivationTotals, view: ReplayView, clock: Clock) -> Callable[[str, bytes], None]:
    """What to do with what the stack's process sends."""

    def hear(kind: str, body: bytes) -> None:
        if kind == MERGE:
            feed.put(events_pb2.MergeEvent.FromString(body), clock.now_s())
        elif kind == ACTIVATIONS:
            totals.put(events_pb2.ActivationReport.FromString(body))
        elif kind == PHASE:
            view.say(f"  {body.decode()}")

    return hear


async def _profiles(merger_address: str) -> dict[str, Frequencies]:
    """The base model's activation frequency by task type."""
    async with channel(merger_address) as connection:
        stub = merger_pb2_grpc.MergerServiceStub(connection)
        answer = await stub.GetProfiles(merger_pb2.GetProfilesRequest(), timeout=LIST_DEADLINE_S)
    return {task_type: rows_to_frequencies(profile.layers) for task_type, profile in answer.profiles.items()}


async def _unmerged(options: DemoOptions, memory_bytes: Mapping[str, int]) -> tuple[UnmergedArm, ...]:
    request = UnmergedRequest(
        options.model, options.tasks, dict(memory_bytes), options.dtype, items_per_type=options.unmerged_items_per_type
    )
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return await asyncio.get_running_loop().run_in_executor(pool, unmerged_arms, request)


def _setup(options: DemoOptions, run: _Measured) -> dict[str, str]:
    sizes = {sample.edge_id: (sample.model_bytes, sample.memory_bytes) for sample in run.result.samples}
    edges = ", ".join(f"{edge_id} ({in_bytes(memory)})" for edge_id, (_, memory) in sorted(sizes.items()))
    trigger = ", ".join(f"{name} {value:g}" for name, value in options.controller.items())
    return {
        "model": options.model,
        "task set": options.tasks,
        "edges (memory for weights)": edges,
        "stored as": options.dtype,
        "versions built by": options.method,
        "load": f"{options.num_users} users, Poisson, {options.num_tasks / options.duration_s:.1f} tasks a second",
        "trigger options": trigger,
        "seed": str(options.seed),
    }
