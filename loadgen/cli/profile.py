"""`moedge profile`: what merging keeps and destroys, beside quantising to the same bytes; activation heat maps; service times."""

from __future__ import annotations

import json as json_text
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loadgen.cli import options
from loadgen.cli.builders import open_builder
from loadgen.cli.console import command, in_seconds, narrow_table, print_json, stderr, stdout
from loadgen.cli.places import model_or_demo, tasks_or_toy
from loadgen.units import in_bytes
from services.core.merging.recipes import PAPER

if TYPE_CHECKING:
    from services.model.profile import MergedRow, ProfileReport


@command
def profile(
    out: Annotated[Path, typer.Option(help="Folder for profile.json and the heat maps.", metavar="DIR")] = Path("out/profile"),
    model: options.Model = None,
    tasks: options.Tasks = None,
    share: Annotated[float, typer.Option(min=0.01, max=1.0, help="Share of all experts that the merged models keep.")] = 0.25,
    items: Annotated[int, typer.Option(min=1, help="Scored items of each task type at most.")] = 300,
    method: options.Method = PAPER.method,
    allocation: options.Allocation = PAPER.allocation,
    recovery_steps: options.RecoverySteps = options.DEFAULT_RECOVERY_STEPS,
    dtype: options.Dtype = "float32",
    device: options.Device = "cpu",
    threads: options.Threads = 2,
    cache: options.Cache = None,
    json: options.Json = False,
) -> None:
    """Merge for each task type and score on all of them.

    Prints the table (rows: merged for, columns: scored on), the full model's row, the control with every expert zeroed, the unmerged
    model quantised (round to nearest) to the same bytes and from 8 bits to 1, and measured service times.
    """
    from services.model.build import BuildOptions
    from services.model.profile import profile as profiled
    from services.tasks.sources import open_tasks, sampled, unseen
    from services.tasks.values import TaskSet

    source = tasks_or_toy(tasks, model)
    scored, calibration = open_tasks(source, "heldout"), open_tasks(source, "calibration")
    if recovery_steps > 0:  # recovery trains on calibration items
        scored = unseen(scored, calibration)
    scored = TaskSet(scored.name, sampled(scored.items, items), scored.scorers)
    builder = open_builder(model_or_demo(model), calibration, dtype, device, threads, cache)
    console = stderr()

    def tell(row: str, fraction: float) -> None:
        if not json:
            console.print(f"[dim]{fraction:4.0%}  {row}[/dim]")

    out.mkdir(parents=True, exist_ok=True)
    report = profiled(builder, scored, share, BuildOptions(method, allocation, recovery_steps=recovery_steps), tell=tell)
    data = as_json(report, scored.name, calibration.name)
    files = _write(report, data, out)
    if json:
        print_json({**data, "files": [str(file) for file in files]})
    else:
        _print(report, (scored.name, calibration.name), files)


def as_json(report: ProfileReport, scored: str, calibration: str) -> dict[str, object]:
    """The report without its activation frequencies, which the heat maps show."""
    merged = {name: _merged_as_json(row) for name, row in (*report.merged.items(), ("uniform", report.uniform))}
    return {
        "base_model": report.base_model,
        "dtype": report.dtype,
        "scored_on": {"name": scored, "items": dict(report.num_items)},
        "calibrated_on": calibration,
        "share": report.share,
        "budget_bytes": report.budget_bytes,
        "full_bytes": report.full_bytes,
        "bits_per_expert_weight": report.bits_per_expert_weight,
        "full": dict(report.full),
        "zero_experts": dict(report.zero_experts),
        "merged": merged,
        "own_and_others": {
            t: {"own": row.quality[t], "others": mean_of([row.quality[o] for o in report.task_types if o != t])}
            for t, row in report.merged.items()
        },
        "same_bytes": asdict(report.same_bytes) if report.same_bytes else None,
        "quantised": [asdict(row) for row in report.quantised],
        "service_times": {
            "prefill_s": {str(size): value for size, value in report.service_times.prefill_s.items()},
            "step_s": {str(size): value for size, value in report.service_times.step_s.items()},
        },
    }


def mean_of(scores: Sequence[float]) -> float | None:
    return sum(scores) / len(scores) if scores else None


def _merged_as_json(row: MergedRow) -> dict[str, object]:
    return {
        "version": row.version,
        "experts_kept": row.experts_kept,
        "bytes": row.model_bytes,
        "build_s": row.build_s,
        "recovery_s": row.recovery_s,
        "quality": dict(row.quality),
        "quality_without_recovery": dict(row.quality_without_recovery),
    }


def _write(report: ProfileReport, data: dict[str, object], out: Path) -> tuple[Path, ...]:
    from loadgen.cli.heatmaps import save_heat_maps

    maps = save_heat_maps(report, out)
    path = out / "profile.json"
    path.write_text(json_text.dumps(data, indent=2) + "\n", encoding="utf-8")
    return (path, *maps)


def _print(report: ProfileReport, sources: tuple[str, str], files: Sequence[Path]) -> None:
    console = stdout()
    types = report.task_types
    console.print(
        f"Merged to {report.share:.0%} of the experts: {in_bytes(report.budget_bytes)} of {in_bytes(report.full_bytes)}, "
        f"{report.bits_per_expert_weight:.2f} bits an expert weight"
    )
    console.print(narrow_table(("merged for", *types, "mean", "experts", "built in"), list(_merged_rows(report))))
    console.print("\nUnmerged, quantised by rounding to so many bits a weight, scales included")
    console.print(narrow_table(("experts", *types, "mean", "bytes", "bits"), list(_unmerged_rows(report))))
    console.print("[dim]* fits the same bytes[/dim]" if report.same_bytes else "[dim]even 1 bit does not fit the same bytes[/dim]")
    times = report.service_times
    rows = [(str(size), in_seconds(times.prefill_s[size]), in_seconds(times.step_s[size])) for size in sorted(times.step_s)]
    console.print("\nService times of the full model on this machine")
    console.print(narrow_table(("batch", "prompts read", "one step"), rows))
    console.print(f"[dim]scored on {sources[0]} ({sum(report.num_items.values())} items); calibrated on {sources[1]}[/dim]")
    console.print("\n".join(str(file) for file in files))


def _merged_rows(report: ProfileReport) -> Iterator[tuple[str, ...]]:
    for name, row in (*report.merged.items(), ("uniform mix", report.uniform)):
        yield (name, *_cells(report, row.quality, own=name), str(row.experts_kept), in_seconds(row.build_s))
        if row.recovery_s > 0:
            plain = _cells(report, row.quality_without_recovery, own=name)
            yield (f"  without its recovery of {in_seconds(row.recovery_s)}", *plain, str(row.experts_kept), "")


def _unmerged_rows(report: ProfileReport) -> Iterator[tuple[str, ...]]:
    yield ("as they are", *_cells(report, report.full), in_bytes(report.full_bytes), report.dtype)
    for row in report.quantised:
        same = " *" if report.same_bytes is not None and row.bits == report.same_bytes.bits else ""
        yield (
            f"{row.bits} {'bit' if row.bits == 1 else 'bits'}{same}",
            *_cells(report, row.quality),
            in_bytes(row.model_bytes),
            f"{row.bits_per_weight:.2f}",
        )
    yield ("zeroed", *_cells(report, report.zero_experts), "-", "0")


def _cells(report: ProfileReport, quality: Mapping[str, float], own: str | None = None) -> tuple[str, ...]:
    scores = [quality[t] for t in report.task_types]
    shown = [f"[bold]{score:.3f}[/bold]" if t == own else f"{score:.3f}" for t, score in zip(report.task_types, scores, strict=True)]
    return (*shown, f"{sum(scores) / len(scores):.3f}")
