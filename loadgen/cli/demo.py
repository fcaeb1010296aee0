"""`moedge demo`: one drifting load on a fresh stack with updates and on a fresh one without, and a report of both."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loadgen.cli import options
from loadgen.cli.console import CommandError, ExitCode, command, print_json, stderr, stdout
from loadgen.cli.places import cache_or_home, demo_edges, model_or_demo, tasks_or_toy
from loadgen.cli.stacks import edges_of
from services.core.merging.recipes import FITTED

if TYPE_CHECKING:
    from loadgen.demo import DemoOptions, DemoReport

LATENESS = "sent on time"  # a busy machine makes the figures doubtful, which the report says; it is no failure of what is shown


@command
def demo(
    out: Annotated[Path, typer.Option(help="Folder for report.html, report.json, plots and records.", metavar="DIR")] = Path("out/demo"),
    model: options.Model = None,
    tasks: options.Tasks = None,
    edges: Annotated[
        str,
        typer.Option(help="An edges file, or how many of the default edges; without it those of infra/edges/demo.toml.", metavar="N|FILE"),
    ] = "",
    method: options.Method = FITTED,
    num_tasks: Annotated[int, typer.Option("--num-tasks", min=50, help="Tasks of each run, about.")] = 1000,
    duration: Annotated[float, typer.Option(min=10, help="Time over which they are sent.", metavar="SECONDS")] = 78.0,
    quality_scale: options.QualityScale = 1.0,
    seed: options.Seed = 0,
    dtype: options.Dtype = "bfloat16",
    device: options.Device = "cpu",
    threads: options.Threads = 1,
    cache: options.Cache = None,
    json: options.Json = False,
) -> None:
    """Show what re-merging is worth while what users ask for drifts: ONTO with portfolio (ours), with JTOM (the paper's), and alone.

    ONTO sends each task to the edge with the lowest predicted cost; portfolio and JTOM say when an edge should get a newly merged model.
    All runs get the same tasks at the same instants and start from versions for the first mix. Exit code 1 if a verdict fails (late sends
    aside, which the report points out).
    """
    from loadgen.demo import DemoOptions

    demo_options = DemoOptions(
        model=model_or_demo(model),
        out_dir=out,
        cache_dir=cache_or_home(cache),
        tasks=tasks_or_toy(tasks, model),
        edges=edges_of(edges or str(demo_edges())),
        method=method,
        num_tasks=num_tasks,
        duration_s=duration,
        quality_scale=quality_scale,
        seed=seed,
        dtype=dtype,
        device=device,
        torch_threads=threads,
    )
    out.mkdir(parents=True, exist_ok=True)
    report = asyncio.run(_run(demo_options, json))
    if json:
        print_json(report.data)
    else:
        _print(report)
    failed = [str(verdict["name"]) for verdict in report.data["verdicts"] if not verdict["ok"] and LATENESS not in verdict["name"]]
    if failed:
        raise CommandError(f"{len(failed)} of {len(report.data['verdicts'])} verdicts failed: {', '.join(failed)}", ExitCode.FAILED)


async def _run(demo_options: DemoOptions, quiet: bool) -> DemoReport:
    from loadgen.demo import demo as demonstrate
    from loadgen.view import view_for

    return await demonstrate(demo_options, view_for(stderr(), quiet=quiet))


def _print(report: DemoReport) -> None:
    from loadgen.report.terminal import print_summary

    console = stdout()
    print_summary(console, report.data)
    console.print(f"{report.directory / 'report.html'}")
