"""`moedge replay`: open-loop load on a stack, each answer scored; Poisson arrivals or those of a trace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loadgen.cli import options
from loadgen.cli.console import CommandError, ExitCode, command, print_json, stderr, stdout
from loadgen.cli.mixes import MIX_HELP, mix_of
from loadgen.cli.places import tasks_or_toy
from loadgen.cli.stacks import StackOptions, stack_settings
from loadgen.cli.targets import address_of
from services.core import defaults

if TYPE_CHECKING:
    from loadgen.results import ReplayResult
    from loadgen.updates import UpdateFeed
    from loadgen.view import ReplayView
    from services.core.workload.arrivals import Instants
    from services.core.workload.load import PlannedTask
    from services.core.workload.mixes import DriftingMix
    from services.runtime.net import Network
    from services.tasks.values import TaskSet


@dataclass(frozen=True, slots=True)
class _Load:
    """What to send, but for the regions of its users, which the target knows."""

    items: TaskSet
    arrivals: Instants
    mix: DriftingMix
    num_users: int
    seed: int


# Options of a stack that is started here.
_OF_STACK = ("model", "edges", "policy", "trigger", "quality_scale", "dtype", "device", "threads", "cache")


@command
def replay(
    context: typer.Context,
    model: options.Model = None,
    tasks: options.Tasks = None,
    target: Annotated[
        str | None,
        typer.Option(envvar="MOEDGE_TARGET", help="A stack that runs already; without it one is started here.", metavar="HOST:PORT[-PORT]"),
    ] = None,
    ca: options.Ca = None,
    token_file: options.TokenFile = None,
    edges: options.Edges = "3",
    policy: options.Policy = defaults.POLICY,
    trigger: options.Trigger = defaults.TRIGGER,
    trace: Annotated[
        Path | None, typer.Option(help="Arrivals from a trace (Azure LLM 2023, Mooncake, BurstGPT; .gz or plain).", metavar="FILE")
    ] = None,
    speed: Annotated[float, typer.Option(callback=options.above_zero, help="How many times as fast the trace is played.")] = 1.0,
    rate: Annotated[float, typer.Option(callback=options.above_zero, help="Tasks a second without a trace (Poisson).")] = 5.0,
    duration: Annotated[
        float, typer.Option(callback=options.above_zero, help="Length of the replay, by the clock on the wall.", metavar="SECONDS")
    ] = 60.0,
    mix: Annotated[str, typer.Option(help="Which task types come when: " + MIX_HELP)] = "drift",
    users: Annotated[int, typer.Option(min=1, help="Users, spread over the regions.")] = 12,
    seed: options.Seed = 0,
    max_tokens: options.MaxTokens = 0,
    deadline: Annotated[float, typer.Option(min=0.001, help="Deadline of each task.", metavar="SECONDS")] = 60.0,
    hide_task_type: Annotated[bool, typer.Option("--hide-task-type", help="Let the broker guess task types from prompts.")] = False,
    quality_scale: options.QualityScale = 1.0,
    dtype: options.Dtype = "float32",
    device: options.Device = "cpu",
    threads: options.Threads = 1,
    cache: options.Cache = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for report.html, report.json, plots, records.jsonl and run.json (moedge simulate --from-replay).", metavar="DIR"
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Send tasks at their planned instants, whatever happens to those before, and score every answer.

    Prints quality by task type: the mean score of its answers. Traces have no task types: those are drawn from the mix. Exit code 1 if any
    task was not completed.
    """
    from loadgen.cli.client import user_network
    from services.runtime.net import PLAINTEXT
    from services.tasks.sources import open_tasks

    given = [name for name in _OF_STACK if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"]
    if target is not None and given:
        told = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise CommandError(f"target: a stack that runs already takes no {told}; leave that out, or leave out --target")
    items = open_tasks(tasks_or_toy(tasks, model), "heldout")
    load = _Load(items, _arrivals(trace, speed, rate, duration, seed), mix_of(mix, items.task_types, duration), users, seed)
    chosen = StackOptions(edges, model, tasks, policy, trigger, quality_scale, dtype, device, threads, cache)
    settings = stack_settings(chosen) if target is None else {}
    replay_options = _Options(max_tokens, deadline, not hide_task_type, out, json)
    network = user_network(ca, token_file) if target is not None else PLAINTEXT
    result = asyncio.run(_run(load, target, network, settings, replay_options))
    data = _report(result, out, items.name, trace)
    if json:
        print_json({**data, "accuracy": _accuracy(result)})
    else:
        _print(data, out)
    if len(result.completed) < result.num_planned:
        raise CommandError(
            f"{result.num_planned - len(result.completed)} of {result.num_planned} tasks were not completed", ExitCode.FAILED
        )


@dataclass(frozen=True, slots=True)
class _Options:
    max_tokens: int
    deadline_s: float
    send_task_type: bool
    out: Path | None
    quiet: bool


def _arrivals(trace: Path | None, speed: float, rate_per_s: float, duration_s: float, seed: int) -> Instants:
    import numpy as np

    from services.core.workload.arrivals import from_trace, poisson

    if trace is None:
        arrivals = poisson(rate_per_s, duration_s, np.random.default_rng([seed, 0]))
    else:
        from loadgen.traces import read_trace

        arrivals = from_trace(read_trace(trace).arrival_s, speed, duration_s)
    if len(arrivals) == 0:
        raise CommandError("no task would be sent: raise --rate, --speed or --duration")
    return arrivals


async def _run(load: _Load, target: str | None, network: Network, settings: dict[str, Any], chosen: _Options) -> ReplayResult:
    from loadgen.options import ReplayOptions
    from loadgen.recorded import RECORDS, merge_rules
    from loadgen.replay import replay as replay_plan
    from loadgen.view import view_for

    view = view_for(stderr(), quiet=chosen.quiet)
    async with _target(target, settings, view) as (address, feed):
        plan = _plan(load, await _regions(address, network))
        replay_options = ReplayOptions(
            deadline_s=chosen.deadline_s,
            max_tokens=chosen.max_tokens,
            send_task_type=chosen.send_task_type,
            records_path=chosen.out / RECORDS if chosen.out else None,
            mix=load.mix,
        )
        result = await replay_plan(address, plan, load.items, replay_options, view, feed=feed, network=network)
    return result if target is not None else replace(result, merging=merge_rules(settings))


@asynccontextmanager
async def _target(target: str | None, settings: dict[str, Any], view: ReplayView) -> AsyncIterator[tuple[str, UpdateFeed | None]]:
    """The broker to send to: the one given, or that of a stack in a process of its own, so that its computing delays no send."""
    if target is not None:
        yield address_of(target), None
        return
    from loadgen.child import ChildStack
    from loadgen.stack_child import MERGE, PHASE, serve_stack
    from loadgen.updates import UpdateFeed
    from moedge.v1 import events_pb2
    from services.runtime.clock import SystemClock

    feed, clock = UpdateFeed(), SystemClock()

    def hear(kind: str, body: bytes) -> None:
        if kind == MERGE:
            feed.put(events_pb2.MergeEvent.FromString(body), clock.now_s())
        elif kind == PHASE:
            view.say(body.decode())

    async with ChildStack(partial(serve_stack, settings), hear) as addresses:
        yield addresses["broker"], feed


async def _regions(address: str, network: Network) -> tuple[str, ...]:
    """User regions that some edge has a link from."""
    from loadgen.cli.client import broker_at

    async with broker_at(address, network) as client:
        listed = await client.list_edges()
    return tuple(sorted({region for edge in listed.edges for region in edge.links})) or ("",)


def _plan(load: _Load, regions: tuple[str, ...]) -> tuple[PlannedTask, ...]:
    import numpy as np

    from services.core.workload.load import User, plan_load

    users = [User(f"user-{n:02d}", regions[n % len(regions)]) for n in range(load.num_users)]
    items_by_type = {task_type: [item.item_id for item in load.items.of_type(task_type)] for task_type in load.items.task_types}
    return plan_load(items_by_type, load.mix, load.arrivals, users, np.random.default_rng([load.seed, 1]))


def _report(result: ReplayResult, out: Path | None, task_set: str, trace: Path | None) -> dict[str, Any]:
    from loadgen.report.document import document
    from loadgen.report.values import ReportInput
    from services.runtime.clock import SystemClock

    setup = {"tasks": task_set, "target": result.target, "arrivals": str(trace) if trace else "Poisson"}
    report = ReportInput("moedge replay", {result.name: result}, setup=setup)
    created_at = SystemClock().wall()
    if out is None:
        return document(report, created_at)
    from loadgen.recorded import write_run
    from loadgen.report.write import write_report

    write_run(out, result)
    return write_report(out, report, created_at)


def _accuracy(result: ReplayResult) -> dict[str, object]:
    """By task type: how many were completed, and their mean score."""
    scores: dict[str, list[float]] = {task_type: [] for task_type in result.task_types}
    for record in result.completed:
        scores[record.task_type].append(record.score or 0.0)
    return {t: {"tasks": len(s), "accuracy": sum(s) / len(s) if s else None} for t, s in scores.items()}


def _print(data: dict[str, Any], out: Path | None) -> None:
    from loadgen.report.terminal import print_summary

    console = stdout()
    print_summary(console, data)
    if out is not None:
        console.print(f"{out / 'report.html'}")
