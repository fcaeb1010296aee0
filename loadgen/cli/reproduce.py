"""`moedge reproduce`: the paper's figures, tables and claims, beside ours."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loadgen.cli import options
from loadgen.cli.console import command, print_json, stderr, stdout

if TYPE_CHECKING:
    from loadgen.reproduce.reproduce import Tell

QUICK_SEEDS = 2
COLOURS = {"reproduced": "green", "not reproduced": "yellow", "contradicted": "red"}


@command
def reproduce(
    experiments: Annotated[list[str], typer.Argument(help=f"{options.EXPERIMENTS}, or all.", metavar="EXPERIMENT")],
    out: Annotated[Path, typer.Option(help="Folder of the page, data, plots and finished runs.", metavar="DIR")] = Path("out/paper"),
    seeds: Annotated[int, typer.Option(min=2, help="Runs of each comparison, paired.")] = 10,
    jobs: Annotated[int, typer.Option(min=0, help="Runs at a time, each on a core of its own; 0: as many as there are cores.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help=f"{QUICK_SEEDS} seeds, short runs: to see that it works.")] = False,
    json: options.Json = False,
) -> None:
    """Run the paper's experiments and say of each of its claims: reproduced, not reproduced, or contradicted.

    The paper: Efficient MoE Model Inference at the Edge via Adaptive Expert Merging.

    Goes on where it was interrupted; what was computed from the same inputs is not computed again.
    """
    from loadgen.experiments import chosen
    from loadgen.reproduce.reproduce import reproduce as run

    names = chosen(experiments)
    out.mkdir(parents=True, exist_ok=True)
    try:
        with _progress(json) as tell:
            documents = run(names, out, tell, num_seeds=QUICK_SEEDS if quick else seeds, jobs=jobs or os.cpu_count() or 1, quick=quick)
    except KeyboardInterrupt:
        stderr().print(f"interrupted: finished runs are kept in {out}, the same command goes on from there")
        raise
    if json:
        print_json({"page": str(out / "index.html"), "experiments": documents})
    else:
        _print(documents)
        if quick:
            stdout().print("quick runs: to see that everything works; these verdicts say nothing about the claims")
        stdout().print(f"{out / 'index.html'}: every claim with its figures, plots and tables")


@contextmanager
def _progress(json: bool) -> Iterator[Tell]:
    """A bar for each experiment, on standard error; it grows with every set of runs that the experiment asks for."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description:12}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns, console=stderr(), disable=json) as progress:
        bars: dict[str, Any] = {}
        before: dict[str, int] = {}  # runs of an experiment's earlier sets

        def tell(name: str, done: int, total: int, left_s: float | None) -> None:
            left = f"{left_s:.0f} s left" if left_s is not None and done < total else ""
            if name not in bars:
                bars[name], before[name] = progress.add_task(name, total=total, left=left), 0
            elif done == 0:
                before[name] = int(progress.tasks[bars[name]].completed)
            progress.update(bars[name], completed=before[name] + done, total=before[name] + total, left=left)

        yield tell


def _print(documents: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table

    console = stdout()
    for told in documents:
        made = Table(title=told["title"], title_justify="left", box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
        for column, ratio in (("claim", 5), ("paper", 2), ("ours", 4)):
            made.add_column(column, ratio=ratio)
        made.add_column("verdict", no_wrap=True)
        for claim in told["claims"]:
            verdict = f"[{COLOURS[claim['verdict']]}]{claim['verdict']}[/]"
            made.add_row(f"{claim['says']} [dim]({claim['source']})[/dim]", claim["paper"], claim["ours"], verdict)
        console.print(made)
    counts = Counter(claim["verdict"] for told in documents for claim in told["claims"])
    console.print(", ".join(f"{counts[verdict]} {verdict}" for verdict in COLOURS))
