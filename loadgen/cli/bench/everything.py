"""`moedge bench all`: every benchmark in turn, each in a process of its own, and what was aimed at beside what came out."""

from __future__ import annotations

import json as json_module
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from loadgen.cli import options
from loadgen.cli.bench.broker import DECISION_TARGET_EDGES, DECISION_TARGET_S, P50_TARGET_S, P99_TARGET_S
from loadgen.cli.bench.merge import TARGETS
from loadgen.cli.bench.simulator import TASKS_TARGET_PER_S
from loadgen.cli.bench.swap import STALL_TARGET_S
from loadgen.cli.bench.worker import TARGET_ALONE, TARGET_STATIC
from loadgen.cli.console import CommandError, ExitCode, command, narrow_table, print_json, stderr, stdout
from services.core.naming import nearest

NAMES = ("simulator", "worker", "swap", "broker", "merge", "fitted")
MERGE = {
    "remerge_s": "re-merge, s",
    "ratio_align_again": "x plain, aligns again",
    "ratio_same_alignment": "x plain, as aligned",
    "max_abs_diff": "largest difference",
}
END_S = 30.0  # that a benchmark gets to end when it is interrupted

Figures = Mapping[str, Any]


class Headline(NamedTuple):
    """A figure with its target: at most, or at least, so much."""

    what: str
    value: float
    target: float
    at_most: bool
    told: str  # how such a figure is written

    @property
    def is_met(self) -> bool:
        return self.value <= self.target if self.at_most else self.value >= self.target

    @property
    def row(self) -> tuple[str, str, str, str]:
        bound = "at most" if self.at_most else "at least"
        return self.what, self.told.format(self.value), f"{bound} {self.told.format(self.target)}", "met" if self.is_met else "missed"


@command
def everything(
    only: Annotated[str, typer.Option(help=f"Some of {', '.join(NAMES)}, with commas between.", metavar="NAMES")] = ",".join(NAMES),
    out: Annotated[Path, typer.Option(help="Folder for the figures of each, as they come.", metavar="DIR")] = Path("out/bench"),
    kafka: Annotated[str, typer.Option(help="For broker: a Kafka that runs.", metavar="HOST:PORT")] = "127.0.0.1:9092",
    redis: Annotated[str, typer.Option(help="For broker: a Redis that runs, without a stack in it.", metavar="URL")] = (
        "redis://127.0.0.1:6379"
    ),
    json: options.Json = False,
) -> None:
    """Every benchmark in turn with its defaults: half an hour on two cores, up to 15 GB of memory and 18 GB of disk.

    Each has a process of its own. One that cannot run is told and left out; figures of the others are kept.
    """
    chosen = [name.strip() for name in only.split(",")]
    for name in chosen:
        if name not in NAMES:
            raise CommandError(f"only: {name!r} is unknown; {nearest(name, NAMES, 'there are ' + ', '.join(NAMES))}")
    arguments: dict[str, Sequence[str]] = {name: () for name in chosen}
    if "broker" in arguments:
        arguments["broker"] = ("--kafka", kafka, "--redis", redis)
    if "merge" in arguments:
        arguments["merge"] = ("--scratch", str(out / "merge"))
    figures, failed = collected(arguments, out)
    if json:
        print_json({"figures": figures, "failed": failed})
    else:
        _print(figures, failed, out)
    if failed:
        raise typer.Exit(ExitCode.FAILED)


def collected(arguments: Mapping[str, Sequence[str]], out: Path) -> tuple[dict[str, Figures], dict[str, str]]:
    """Figures by benchmark, and of those that did not run the last that they said. Both by name; `arguments` are each one's."""
    from loadgen.bench.pinned import moedge

    out.mkdir(parents=True, exist_ok=True)
    console = stderr()
    figures: dict[str, Figures] = {}
    failed: dict[str, str] = {}
    for number, (name, given) in enumerate(arguments.items(), 1):

        def tell(line: str, name: str = name, number: int = number) -> None:
            console.print(f"[dim]{name} ({number} of {len(arguments)}): {line}[/dim]")

        code, told, last = _run([*moedge(), "bench", name, "--json", *given], tell)
        if code:
            failed[name] = last or f"ended with exit code {code}"
            continue
        (out / f"{name}.json").write_text(told)
        figures[name] = json_module.loads(told)
    return figures, failed


def _run(arguments: Sequence[str], tell: Callable[[str], None]) -> tuple[int, str, str]:
    """Exit code, standard output, and the last line on standard error, all of which is told."""
    last = ""
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            for line in process.stderr:
                last = line.rstrip() or last
                tell(line.rstrip())
            told = process.stdout.read()
        except KeyboardInterrupt:  # which the terminal sent to the benchmark as well
            with suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
            process.kill()
            raise
    return process.returncode, told, last.removeprefix("moedge: ")


def headlines(name: str, figures: Figures) -> Iterator[Headline]:
    """What was aimed at, of one benchmark's figures."""
    if name == "simulator":
        yield Headline("tasks/s, as installed", figures["tasks_per_s"], TASKS_TARGET_PER_S, False, "{:,.0f}")
        if figures["compiled_tasks_per_s"] is not None:
            yield Headline("tasks/s, compiled", figures["compiled_tasks_per_s"], TASKS_TARGET_PER_S, False, "{:,.0f}")
    elif name == "worker":
        yield Headline("x best static batch", figures["ratio_best_static_batch"], TARGET_STATIC, False, "{:.2f}")
        yield Headline("x one at a time", figures["ratio_one_at_a_time"], TARGET_ALONE, False, "{:.2f}")
        yield Headline("tasks of other tokens", figures["num_checked"] - figures["num_equal"], 0, True, "{:.0f}")
    elif name == "swap":
        yield Headline("failed tasks", figures["failed"], 0, True, "{:.0f}")
        for size, each in figures["sizes"].items():
            yield Headline(f"stall p99 at {float(size):.0%}, ms", 1e3 * each["stall_p99_s"], 1e3 * STALL_TARGET_S, True, "{:.0f}")
    elif name == "broker":
        yield Headline("added p50, ms", 1e3 * figures["added_p50_s"], 1e3 * P50_TARGET_S, True, "{:.2f}")
        yield Headline("added p99, ms", 1e3 * figures["added_p99_s"], 1e3 * P99_TARGET_S, True, "{:.2f}")
        decision_s = figures["decision_s"].get(str(DECISION_TARGET_EDGES))
        if decision_s is not None:
            yield Headline("decision, 100 edges, µs", 1e6 * decision_s, 1e6 * DECISION_TARGET_S, True, "{:.0f}")
    elif name == "merge":
        for key, target in TARGETS.items():
            told = "{:.1e}" if target < 1 else "{:,.1f}"
            yield Headline(MERGE[key], figures[key], target, target < 1 or key == "remerge_s", told)


def _print(figures: Mapping[str, Figures], failed: Mapping[str, str], out: Path) -> None:
    rows = [(name, *headline.row) for name, each in figures.items() for headline in headlines(name, each)]
    if rows:
        stdout().print(narrow_table(("", "what", "figure", "target", ""), rows, 2))
    for name, why in failed.items():
        stdout().print(f"{name} did not run: {why}")
    if figures:
        stdout().print(f"All figures: {', '.join(str(out / f'{name}.json') for name in figures)}")
