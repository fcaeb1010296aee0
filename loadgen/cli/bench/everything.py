"""`moedge bench all`: every benchmark in turn, each in a process of its own, and what was aimed at beside what came out."""

from __future__ import annotations

import json as json_module
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from loadgen.cli import options
from loadgen.cli.bench import broker, merge, simulator, swap, worker
from loadgen.cli.bench.headlines import Figures, Headlines
from loadgen.cli.console import CommandError, ExitCode, command, narrow_table, print_json, stderr, stdout
from services.core.naming import nearest

BENCHMARKS: dict[str, Headlines] = {
    "simulator": simulator.headlines,
    "worker": worker.headlines,
    "swap": swap.headlines,
    "broker": broker.headlines,
    "merge": merge.headlines,
    "fitted": lambda figures: (),
}
NAMES = tuple(BENCHMARKS)
END_S = 30.0  # that a benchmark gets to end when it is interrupted


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


def _print(figures: Mapping[str, Figures], failed: Mapping[str, str], out: Path) -> None:
    rows = [(name, *headline.row) for name, each in figures.items() for headline in BENCHMARKS[name](each)]
    if rows:
        stdout().print(narrow_table(("", "what", "figure", "target", ""), rows, 2))
    for name, why in failed.items():
        stdout().print(f"{name} did not run: {why}")
    if figures:
        stdout().print(f"All figures: {', '.join(str(out / f'{name}.json') for name in figures)}")
