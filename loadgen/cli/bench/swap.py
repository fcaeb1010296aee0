"""`moedge bench swap`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from loadgen.cli import options
from loadgen.cli.bench.headlines import Figures, Headline
from loadgen.cli.console import CommandError, command, in_seconds, print_json, progress, stdout, table
from loadgen.cli.places import model_or_demo, tasks_or_toy
from loadgen.units import in_bytes

if TYPE_CHECKING:
    from loadgen.bench.swap.curve import CurvePoint
    from loadgen.bench.swap.figures import SizeFigures, SwapFigures

STALL_TARGET_S = 0.1
CURVE_LEGEND = """\
changes that gain above: what the edge holds is replaced where that gains more
from scratch: planned as if the edge held nothing
score: of --model on the mix that each version was built for"""


@command
def swap(
    swaps: Annotated[int, typer.Option(min=1, help="Swaps at each size, each to a merge for a mix that has drifted further.")] = 30,
    fractions: Annotated[str, typer.Option(help="Shares of experts kept, with commas between.", metavar="SHARE,...")] = "0.25,0.6",
    shape: Annotated[str, typer.Option(help="switch-base-32, or pico to try it out.")] = "switch-base-32",
    users: Annotated[int, typer.Option(min=1, help="Streams at once, which is also the worker's batch.")] = 8,
    quiet_s: Annotated[float, typer.Option(min=0.5, help="Time of the same load without swaps.", metavar="SECONDS")] = 30.0,
    reserve_bytes: Annotated[
        int | None, typer.Option(min=0, help="The worker's memory for swaps; without it what the largest update asks for, and 256 MiB.")
    ] = None,
    curve: Annotated[
        bool, typer.Option("--curve", help="Instead: bytes shipped against score of --model as versions keep more of what an edge holds.")
    ] = False,
    model: options.Model = None,
    tasks: options.Tasks = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Stalls, memory and bytes of swaps under load: a random bfloat16 model of full size, merged for a mix that drifts.

    Profiles of task types, which the merges are planned from, are measured on --model.
    """
    try:
        from loadgen.bench.swap.curve import curve as curve_of
        from loadgen.bench.swap.measure import SwapOptions, measure
        from loadgen.bench.swap.shapes import SHAPES
        from loadgen.bench.swap.sites import Source
    except ModuleNotFoundError as error:
        raise CommandError(f"{error.name} is not installed: pip install 'moedge[worker,dev]'") from error

    if shape not in SHAPES:
        raise CommandError(f"shape: {shape!r} is unknown; known are {', '.join(sorted(SHAPES))}")
    source = Source(model_or_demo(model), tasks_or_toy(tasks, model))
    asked = SwapOptions(shape, _fractions(fractions), swaps, users, quiet_s, reserve_bytes, seed)

    tell = progress()
    if curve:
        curves = {fraction: curve_of(source, fraction, swaps, seed, tell) for fraction in asked.fractions}
        print_json(curves_json(curves)) if json else _print_curves(curves)
        return
    figures = measure(asked, source, tell)
    if json:
        print_json(as_json(figures))
    else:
        _print(figures)


def _fractions(text: str) -> tuple[float, ...]:
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise CommandError(f"fractions: {text!r} are no numbers with commas between, such as 0.25,0.6") from error
    if any(not 0 < share <= 1 for share in shares):
        raise CommandError(f"fractions: {text!r} must be above 0 and at most 1")
    return shares


def as_json(figures: SwapFigures) -> dict[str, object]:
    """The worst size at the top, each under `sizes`."""
    sizes = figures.sizes
    return {
        "shape": figures.shape,
        "machine": {**figures.machine, "bandwidth_bytes_per_s": figures.bandwidth_bytes_per_s},
        "swaps": sum(len(size.swaps) for size in sizes),
        "failed": figures.failed,
        "stall_p99_s": max(size.stall_p99_s for size in sizes),
        "bytes_share": max(size.bytes_share for size in sizes),
        "peak_rss_bytes": max(size.peak_rss_bytes for size in sizes),
        "within_budget": all(size.peak_rss_bytes <= size.budget_bytes for size in sizes),
        "sizes": {f"{size.fraction:g}": _size_json(size) | {"least_load_s": figures.least_load_s(size)} for size in sizes},
    }


def headlines(figures: Figures) -> Iterator[Headline]:
    yield Headline("failed tasks", figures["failed"], 0, True, "{:.0f}")
    for size, each in figures["sizes"].items():
        yield Headline(f"stall p99 at {float(size):.0%}, ms", 1e3 * each["stall_p99_s"], 1e3 * STALL_TARGET_S, True, "{:.0f}")


def _size_json(size: SizeFigures) -> dict[str, object]:
    return {
        "swaps": len(size.swaps),
        "failed": len(size.failures),
        "failures": sorted(set(size.failures)),
        "completed": size.completed,
        "stall_p99_s": size.stall_p99_s,
        "stall_median_s": size.stall_median_s,
        "quiet_stall_p99_s": size.quiet_stall_p99_s,
        "quiet_gap_median_s": size.quiet_median_s,
        "quiet_gap_p99_s": size.quiet_p99_s,
        "quiet_tokens_per_s": size.quiet_tokens_per_s,
        "window_median_s": size.median_s("window_s"),
        "fetch_median_s": size.median_s("fetch_s"),
        "load_median_s": size.median_s("load_s"),
        "downtime_median_s": size.median_s("downtime_s"),
        "lost_token_s": size.lost_token_s,
        "bytes_share": size.bytes_share,
        "model_bytes": size.model_bytes,
        "reserve_bytes": size.reserve_bytes,
        "base_rss_bytes": size.base_rss_bytes,
        "quiet_rss_bytes": size.quiet_rss_bytes,
        "peak_rss_bytes": size.peak_rss_bytes,
        "budget_bytes": size.budget_bytes,
        "stalls_s": [round(swap.stall_s, 4) for swap in size.swaps],
        "longest_gaps_s": [round(swap.longest_gap_s, 4) for swap in size.swaps],
        "longest_gaps_by_phase_s": [[round(gap_s, 4) for gap_s in swap.longest_by_phase_s] for swap in size.swaps],
        "peaks_rss_bytes": [swap.peak_rss_bytes for swap in size.swaps],
        "lost_tokens_s": [round(swap.lost_token_s, 3) for swap in size.swaps],
        "bytes_fetched": [swap.bytes_fetched for swap in size.swaps],
    }


def curves_json(curves: Mapping[float, Sequence[CurvePoint]]) -> dict[str, object]:
    return {
        "curves": {
            f"{fraction:g}": [
                {"allocation": p.allocation, "keep_gain": p.keep_gain, "bytes_share": p.bytes_share, "score": p.score} for p in points
            ]
            for fraction, points in curves.items()
        },
    }


def _print_curves(curves: Mapping[float, Sequence[CurvePoint]]) -> None:
    columns = ("allocation", "changes that gain above", "shipped, of full reloads", "score")
    for fraction, points in curves.items():
        rows = [
            (p.allocation, "from scratch" if p.keep_gain is None else f"{p.keep_gain:.0%}", f"{p.bytes_share:.1%}", f"{p.score:.3f}")
            for p in points
        ]
        stdout().print(table(f"{fraction:.0%} of the experts, means of updates to a mix that drifts", columns, rows))
    stdout().print(f"[dim]{CURVE_LEGEND}[/dim]")


def _print(figures: SwapFigures) -> None:
    console = stdout()
    columns = ("what", *(f"{size.fraction:.0%} of experts" for size in figures.sizes))
    cells = [_cells(size) | {"least that loading takes": in_seconds(figures.least_load_s(size))} for size in figures.sizes]
    rows = [(what, *(of_size[what] for of_size in cells)) for what in cells[0]]
    console.print(table(f"{figures.shape}, bfloat16: swaps under load", columns, rows))
    missed = [size for size in figures.sizes if size.stall_p99_s > STALL_TARGET_S]
    for size in missed:
        console.print(f"{size.fraction:.0%}: stall p99 {in_seconds(size.stall_p99_s)} is above {in_seconds(STALL_TARGET_S)}")
    for size in figures.sizes:
        if size.peak_rss_bytes > size.budget_bytes:
            console.print(f"{size.fraction:.0%}: {in_bytes(size.peak_rss_bytes - size.budget_bytes)} above the budget")
        for failure in sorted(set(size.failures)):
            console.print(f"{size.fraction:.0%}: a task failed: {failure}")


def _cells(size: SizeFigures) -> dict[str, str]:
    """One figure a row, so that no cell is broken in 80 columns."""
    return {
        "swaps": str(len(size.swaps)),
        "tasks completed": str(size.completed),
        "tasks failed": str(len(size.failures)),
        "gap between tokens without swaps, median": in_seconds(size.quiet_median_s),
        "gap between tokens without swaps, p99": in_seconds(size.quiet_p99_s),
        "stall of a swap, median": in_seconds(size.stall_median_s),
        "stall of a swap, p99": in_seconds(size.stall_p99_s),
        "the same where nothing is swapped, p99": in_seconds(size.quiet_stall_p99_s),
        "fetch, median": in_seconds(size.median_s("fetch_s")),
        "load, median": in_seconds(size.median_s("load_s")),
        "all of a swap, median": in_seconds(size.median_s("window_s")),
        "downtime, median": in_seconds(size.median_s("downtime_s")),
        "token-seconds lost a swap": f"{size.lost_token_s:.1f}",
        "shipped, of full reloads": f"{size.bytes_share:.1%}",
        "resident memory without swaps": in_bytes(size.quiet_rss_bytes),
        "resident memory in swaps": in_bytes(size.peak_rss_bytes),
        "budget: process + version + reserve": in_bytes(size.budget_bytes),
        "reserve of that": in_bytes(size.reserve_bytes),
    }
