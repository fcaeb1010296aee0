"""`moedge bench simulator`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from loadgen.cli import options
from loadgen.cli.bench.headlines import Figures, Headline
from loadgen.cli.console import CommandError, command, print_json, progress, stdout, table

if TYPE_CHECKING:
    from loadgen.bench.simulator import SimulatorFigures

TASKS_TARGET_PER_S = 50_000


@command
def simulator(
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each; the median counts.")] = 3,
    most_edges: Annotated[int, typer.Option(min=10, help="The cost of a task is measured up to so many edges.")] = 1000,
    compiled: Annotated[bool, typer.Option(help="Measure the compiled copy too, made first where sources are newer.")] = True,
    json: options.Json = False,
) -> None:
    """Tasks a second of the simulator on one core, as installed and compiled, beside a SimPy model of the same servers."""
    try:
        from loadgen.bench.compiled import compiled_copy
        from loadgen.bench.simulator import SCALES, TASKS, measure
    except ModuleNotFoundError as error:
        raise CommandError(f"{error.name} is not installed: pip install 'moedge[dev]'") from error

    tell = progress()
    folder = compiled_copy(tell) if compiled else None
    figures = measure(rounds, tuple(n for n in SCALES if n <= most_edges), tell, TASKS, folder)
    if json:
        print_json(as_json(figures))
    else:
        _print(figures)


def as_json(figures: SimulatorFigures) -> dict[str, object]:
    return {
        "compiled": figures.compiled,
        "num_edges": figures.num_edges,
        "tasks_per_s": figures.tasks_per_s,
        "slowest_tasks_per_s": figures.slowest,
        "fastest_tasks_per_s": figures.fastest,
        "simpy_tasks_per_s": figures.simpy_tasks_per_s,
        "compiled_tasks_per_s": figures.compiled_tasks_per_s,
        "ratio_simpy": figures.ratio_simpy,
        "simpy_onto_tasks_per_s": figures.simpy_onto_tasks_per_s,
        "ratio_simpy_onto": figures.ratio_simpy_onto,
        "without_updates_tasks_per_s": figures.without_updates,
        "round_robin_tasks_per_s": figures.round_robin,
        "task_s_by_edges": {str(n): value for n, value in figures.task_s_by_edges.items()},
    }


def headlines(figures: Figures) -> Iterator[Headline]:
    yield Headline("tasks/s, as installed", figures["tasks_per_s"], TASKS_TARGET_PER_S, False, "{:,.0f}")
    if figures["compiled_tasks_per_s"] is not None:
        yield Headline("tasks/s, compiled", figures["compiled_tasks_per_s"], TASKS_TARGET_PER_S, False, "{:,.0f}")


def _print(figures: SimulatorFigures) -> None:
    console = stdout()
    rows = [
        ("ONTO and JTOM, activations on", f"{figures.tasks_per_s:,.0f}", f"{figures.slowest:,.0f} to {figures.fastest:,.0f}"),
        ("ONTO without updates", f"{figures.without_updates:,.0f}", ""),
        ("round robin without updates", f"{figures.round_robin:,.0f}", ""),
        (
            "SimPy, same engine: ONTO without updates",
            f"{figures.simpy_onto_tasks_per_s:,.0f}",
            f"ours {figures.ratio_simpy_onto:.2f} x",
        ),
        (
            "SimPy, nothing decides: servers in turn",
            f"{figures.simpy_tasks_per_s:,.0f}",
            f"ours, all of it, {figures.ratio_simpy:.2f} x",
        ),
    ]
    if figures.compiled_tasks_per_s is not None:
        faster = figures.compiled_tasks_per_s / figures.tasks_per_s
        rows.insert(1, ("the same, compiled (make compiled)", f"{figures.compiled_tasks_per_s:,.0f}", f"{faster:.2f} x as installed"))
    console.print(
        table(
            f"{figures.num_edges} edges, on one core, {'compiled' if figures.compiled else 'as installed'} where nothing else is said",
            ("what", "tasks/s", "beside"),
            rows,
        )
    )
    reached = [("as installed", figures.tasks_per_s), ("compiled", figures.compiled_tasks_per_s)]
    verdicts = [f"{'met' if rate >= TASKS_TARGET_PER_S else 'missed'} {how}" for how, rate in reached if rate is not None]
    console.print(f"Target {TASKS_TARGET_PER_S:,} tasks/s: {', '.join(verdicts)}")
    scales = [(str(n), f"{value * 1e6:.0f}") for n, value in figures.task_s_by_edges.items()]
    console.print(table("Cost of a task", ("edges", "µs"), scales))
