"""`moedge bench fitted`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from loadgen.cli import options
from loadgen.cli.console import CommandError, command, narrow_table, print_json, progress, stdout

if TYPE_CHECKING:
    from loadgen.bench.fitted import FittedFigures, StepTime


@command
def fitted(
    shares: Annotated[
        str, typer.Option(help="Memory sizes: beside the rest of the model, so many percent of the experts.", metavar="PERCENT,...")
    ] = "5,8,11,14,22,30,37",
    items: Annotated[int, typer.Option(min=1, help="Scored items of each task type.")] = 150,
    batches: Annotated[str, typer.Option(help="Tasks in a batch, for step times.", metavar="N,...")] = "1,2,4,8",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of step times; the median counts.")] = 25,
    model: options.Model = None,
    tasks: options.Tasks = None,
    dtype: options.Dtype = "bfloat16",
    device: options.Device = "cpu",
    cache: options.Cache = None,
    json: options.Json = False,
) -> None:
    """Quality and step time of fitted experts, of the product's merge and of the unmerged model at equal bytes, by memory size."""
    from loadgen.bench.fitted import measure
    from loadgen.cli.builders import open_builder
    from loadgen.cli.compare import split
    from loadgen.cli.places import model_or_demo, tasks_or_toy

    calibration, scored = split(tasks_or_toy(tasks, model), items)
    builder = open_builder(model_or_demo(model), calibration, dtype, device, 1, cache)
    sizes = tuple(percent / 100 for percent in _numbers(shares, "shares"))
    counts = tuple(int(count) for count in _numbers(batches, "batches"))
    figures = measure(builder, scored, sizes, counts, rounds, progress())
    if json:
        print_json(asdict(figures))
    else:
        _print(figures)


LEGEND = """\
experts, bits: share of the experts' bytes held; room for each of their weights
after a drift: what a fitted version scores on the next type's mix
merged: the product's merge
rounded, compensated: the unmerged model at so many bits, errors left or made up
build s: of a fitted version, once the base model is prepared"""


def _numbers(text: str, option: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number <= 100 for number in numbers):
        raise CommandError(f"{option}: {text!r} is not a list of numbers above 0")
    return numbers


def _print(figures: FittedFigures) -> None:
    console = stdout()
    rows = [
        (
            f"{memory.expert_share:.0%}",
            f"{memory.bits_per_weight:.2f}",
            f"{memory.fitted:.3f}",
            f"{memory.fitted_elsewhere:.3f}",
            f"{memory.product:.3f}",
            _with_bits(memory.unmerged, memory.unmerged_bits),
            _with_bits(memory.compensated, memory.compensated_bits),
            f"{memory.build_s:.1f}",
        )
        for memory in figures.memories
    ]
    heads = ("experts", "bits", "fitted", "after a drift", "merged", "rounded", "compensated", "build s")
    console.print("Score for mixes that one task type leads, in equal memory")
    console.print(f"full model {figures.full:.3f}, {figures.dtype}")
    console.print(narrow_table(heads, rows))
    console.print(f"[dim]{LEGEND}[/dim]")
    columns = ("version", *(f"batch of {time.batch}" for time in figures.full_times))
    for title, of in (("Decoding step", _step_s), ("Prefill", _prefill_s)):
        times = [("full model", *(f"{1000 * of(one):.2f}" for one in figures.full_times))]
        for memory in figures.memories:
            pairs = list(zip(memory.fitted_times, memory.product_times, strict=True))
            size = f"{memory.expert_share:.0%}"
            times.append((f"fitted, {size}", *(f"{1000 * of(one):.2f} ({of(one) / of(other):.2f})" for one, other in pairs)))
            times.append((f"merged, {size}", *(f"{1000 * of(other):.2f}" for _, other in pairs)))
        console.print(f"\n{title}, CPU milliseconds on one thread (times that of the merged model)")
        console.print(narrow_table(columns, times))


def _with_bits(score: float | None, bits: int | None) -> str:
    return "too large" if score is None else f"{score:.3f}, {bits} bit{'s' * (bits != 1)}"


def _step_s(time: StepTime) -> float:
    return time.step_s


def _prefill_s(time: StepTime) -> float:
    return time.prefill_s
