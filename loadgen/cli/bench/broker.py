"""`moedge bench broker`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from loadgen.cli import options
from loadgen.cli.bench.headlines import Figures, Headline
from loadgen.cli.console import CommandError, ExitCode, command, narrow_table, print_json, progress, stdout, table

if TYPE_CHECKING:
    from loadgen.bench.broker import Added, BrokerFigures, SideFigures

P50_TARGET_S, P99_TARGET_S, DECISION_TARGET_S, DECISION_TARGET_EDGES = 0.001, 0.005, 100e-6, 100


@command
def broker(
    kafka: Annotated[
        str, typer.Option(envvar="MOEDGE_KAFKA_BOOTSTRAP", help="A Kafka that runs; task events are left in it.", metavar="HOST:PORT")
    ] = "127.0.0.1:9092",
    redis: Annotated[
        str, typer.Option(envvar="MOEDGE_REDIS_URL", help="A Redis that runs, without a stack in it.", metavar="URL")
    ] = "redis://127.0.0.1:6379",
    rate: Annotated[float, typer.Option(min=0.1, help="Tasks a second.")] = 300.0,
    duration: Annotated[float, typer.Option(min=0.1, help="Time of load each way, over all rounds.", metavar="SECONDS")] = 60.0,
    rounds: Annotated[int, typer.Option(min=1, help="Blocks of each way; they take turns.")] = 6,
    warm_up: Annotated[
        float, typer.Option(min=0.1, help="Load through the broker before: Kafka begins slowly.", metavar="SECONDS")
    ] = 120.0,
    edges: Annotated[int, typer.Option(min=1, help="Stub edges that answer.")] = 10,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens that they answer with.")] = 8,
    token_s: Annotated[float, typer.Option(min=0.0, help="Time before each token.", metavar="SECONDS")] = 0.01,
    most_edges: Annotated[int, typer.Option(min=10, help="The time of a decision is measured up to so many edges.")] = 1000,
    decisions: Annotated[int, typer.Option(min=1, help="Decisions measured at each number of edges.")] = 5000,
    seed: options.Seed = 1,
    json: options.Json = False,
) -> None:
    """What the broker adds to a task, beside the same calls made directly to the edges and through a bare proxy."""
    try:
        from loadgen.bench.broker import SCALES, BrokerOptions, measure
        from loadgen.bench.broker_places import PlaceError
        from loadgen.bench.stub_edges import Pace
    except ModuleNotFoundError as error:
        raise CommandError(f"{error.name} is not installed: pip install 'moedge[dev]'") from error

    scales = tuple(n for n in SCALES if n <= most_edges)
    asked = BrokerOptions(rate, duration, warm_up, rounds, edges, Pace(tokens, token_s), scales, decisions, seed)
    try:
        figures = asyncio.run(measure(asked, kafka, redis, progress()))
    except PlaceError as error:
        raise CommandError(str(error), ExitCode.UNREACHABLE) from error
    if json:
        print_json(as_json(figures))
    else:
        _print(figures)


def as_json(figures: BrokerFigures) -> dict[str, object]:
    asked = figures.options
    return {
        "tasks_per_s": asked.tasks_per_s,
        "duration_s": asked.duration_s,
        "warm_up_s": asked.warm_up_s,
        "rounds": asked.rounds,
        "num_edges": asked.num_edges,
        "num_tokens": asked.pace.num_tokens,
        "token_s": asked.pace.token_s,
        "seed": asked.seed,
        "pinned": figures.is_pinned,
        "added_p50_s": figures.added.p50_s,
        "added_p99_s": figures.added.p99_s,
        "hop_added_p50_s": figures.hop_added.p50_s,
        "hop_added_p99_s": figures.hop_added.p99_s,
        "round_added_p50_s": list(figures.added.round_p50_s),
        "round_added_p99_s": list(figures.added.round_p99_s),
        "decision_s": {str(n): each.median_s for n, each in figures.decisions.items()},
        "decision_p99_s": {str(n): each.p99_s for n, each in figures.decisions.items()},
        "broker_cpu_s_per_task": figures.broker.cpu_s_per_task,
        "broker_busy_share": figures.broker.busy_share,
        "broker_idle_share": figures.direct.busy_share,
        "hop_cpu_s_per_task": figures.hop.cpu_s_per_task,
        "broker_rss_bytes": figures.rss_bytes,
        "num_events": figures.num_events,
        "direct": _side(figures.direct),
        "hop": _side(figures.hop),
        "broker": _side(figures.broker),
    }


def _side(side: SideFigures) -> dict[str, object]:
    return {
        "num_tasks": side.num_sent,
        "num_failed": side.num_failed,
        "first_token_p50_s": side.latencies.p50_s,
        "first_token_p99_s": side.latencies.p99_s,
        "whole_p50_s": side.latencies.whole_p50_s,
        "late_p50_s": side.latencies.late_p50_s,
        "late_p99_s": side.latencies.late_p99_s,
        "punctual": side.latencies.punctual,
        "round_first_token_p50_s": list(side.round_p50_s),
        "round_first_token_p99_s": list(side.round_p99_s),
    }


def headlines(figures: Figures) -> Iterator[Headline]:
    yield Headline("added p50, ms", 1e3 * figures["added_p50_s"], 1e3 * P50_TARGET_S, True, "{:.2f}")
    yield Headline("added p99, ms", 1e3 * figures["added_p99_s"], 1e3 * P99_TARGET_S, True, "{:.2f}")
    decision_s = figures["decision_s"].get(str(DECISION_TARGET_EDGES))
    if decision_s is not None:
        yield Headline("decision, 100 edges, µs", 1e6 * decision_s, 1e6 * DECISION_TARGET_S, True, "{:.0f}")


def _print(figures: BrokerFigures) -> None:
    asked, console = figures.options, stdout()
    where = "proxy and broker on a core of their own" if figures.is_pinned else "nothing pinned to a core"
    console.print(f"{asked.tasks_per_s:g} tasks/s of {asked.pace.num_tokens} tokens, {asked.num_edges} edges, {where}; ms")
    rows = [
        _row("direct to the edges", figures.direct, None),
        _row("through a bare proxy", figures.hop, figures.hop_added),
        _row("through the broker", figures.broker, figures.added),
    ]
    columns = ("to the first token", "tasks", "failed", "p50", "p99", "added p50", "added p99", "sent late p99")
    console.print(narrow_table(columns, rows))
    console.print(f"Added, median of {asked.rounds} rounds, p50: {_verdict(figures.added.p50_s, P50_TARGET_S)}")
    console.print(f"Added, median of {asked.rounds} rounds, p99: {_verdict(figures.added.p99_s, P99_TARGET_S)}")
    console.print(
        f"CPU time a task: broker {figures.broker.cpu_s_per_task * 1e3:.2f} ms ({figures.broker.busy_share:.0%} of a core; "
        f"{figures.direct.busy_share:.0%} without load), bare proxy {figures.hop.cpu_s_per_task * 1e3:.2f} ms"
    )
    console.print(f"Events of the broker in Kafka, those of {asked.warm_up_s:g} s of load beforehand too: {figures.num_events:,}")
    if not all(side.latencies.punctual for side in (figures.direct, figures.hop, figures.broker)):
        console.print("[red]The load was sent late: these figures say little about the broker. Try a quieter machine.[/red]")
    scales = [(str(n), f"{each.median_s * 1e6:.0f}", f"{each.p99_s * 1e6:.0f}") for n, each in figures.decisions.items()]
    console.print(table("One decision, µs", ("edges", "median", "p99"), scales))
    if (at_100 := figures.decisions.get(DECISION_TARGET_EDGES)) is not None:
        console.print(f"Decision among {DECISION_TARGET_EDGES} edges: {_verdict(at_100.median_s, DECISION_TARGET_S)}")


def _row(name: str, side: SideFigures, added: Added | None) -> tuple[str, ...]:
    seen = side.latencies
    return (
        name,
        f"{side.num_sent:,}",
        str(side.num_failed),
        f"{seen.p50_s * 1e3:.2f}",
        f"{seen.p99_s * 1e3:.2f}",
        f"{added.p50_s * 1e3:.2f}" if added else "",
        f"{added.p99_s * 1e3:.2f}" if added else "",
        f"{seen.late_p99_s * 1e3:.2f}",
    )


def _verdict(value_s: float, target_s: float) -> str:
    return f"{value_s * 1e3:.3f} ms, target {target_s * 1e3:g} ms: {'met' if value_s <= target_s else 'missed'}"
