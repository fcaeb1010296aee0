"""`moedge merge`: one merged model, built here without a merger service; a manifest and its blobs in a folder."""

from __future__ import annotations

import json as json_text
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loadgen.cli import options
from loadgen.cli.builders import open_builder
from loadgen.cli.compare import compared
from loadgen.cli.console import CommandError, command, in_scores, in_seconds, in_shares, print_json, progress, stdout
from loadgen.cli.mixes import shares_of
from loadgen.cli.places import model_or_demo, tasks_or_toy
from loadgen.units import in_bytes
from services.core.merging.recipes import PRODUCT

if TYPE_CHECKING:
    from services.model.blob_store import BlobStore
    from services.model.manifest import ModelManifest


@command
def merge(
    out: Annotated[Path, typer.Option(help="Folder for manifest.json, manifest.pb and blobs, or for the comparison.", metavar="DIR")],
    task: Annotated[str | None, typer.Option(help="Task type to merge for, or a mix such as squad=3,copa=1.", metavar="TYPE|MIX")] = None,
    budget_bytes: Annotated[
        int | None, typer.Option(min=1, help="Memory for weights; the merged model fills it to within one expert.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Instead: every way to make experts smaller, scored at several budgets; a table and a plot.")
    ] = False,
    compressions: Annotated[
        str, typer.Option(help=f"With --compare: which, with commas between; without it all of {options.COMPRESSIONS}.", metavar="NAMES")
    ] = "",
    budgets: Annotated[
        str, typer.Option(help="With --compare: room for experts, in bits for each original expert weight.", metavar="BITS,...")
    ] = "4,2,1.25,0.84,0.56,0.28",
    items: Annotated[int, typer.Option(min=1, help="With --compare: scored items of each task type at most.")] = 300,
    model: options.Model = None,
    tasks: options.Tasks = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "cpu",
    method: options.Method = PRODUCT.method,
    allocation: options.Allocation = PRODUCT.allocation,
    recovery_steps: options.RecoverySteps = options.DEFAULT_RECOVERY_STEPS,
    threads: options.Threads = 2,
    cache: options.Cache = None,
    json: options.Json = False,
) -> None:
    """Build one merged model for a task type or a mix, within a byte budget.

    With --compare nothing is kept: it scores what each way to make experts smaller leaves of the model, beside the unmerged model at few
    bits. Prints its bytes, the full model's bytes in that dtype, experts kept, seconds, and quality by task type on calibration items.
    The same request gives the same version.
    """
    from services.model.build import BuildOptions
    from services.runtime.clock import SystemClock
    from services.tasks.sources import open_tasks

    if compare:
        compared(out, model, tasks, task, compressions, budgets, items, dtype, device, threads, as_json=json)
        return
    if task is None or budget_bytes is None:
        raise CommandError("task and budget_bytes: a merge needs both; give them, or --compare")
    source = model_or_demo(model)
    task_set = open_tasks(tasks_or_toy(tasks, model), "calibration")
    mix = shares_of(task, task_set.task_types)
    if out.exists() and not out.is_dir():
        raise CommandError(f"out: {out} is a file; give a folder")
    builder = open_builder(source, task_set, dtype, device, threads, cache)
    tell = progress()
    tell(f"calibrating and aligning {source} (cached after the first time)")
    builder.prepare()  # once per base model, so it is no part of the seconds of this merge
    clock = SystemClock()
    tell(f"merging and measuring, method {method}")
    start_at_s = clock.now_s()
    build_options = BuildOptions(method=method, allocation=allocation, recovery_steps=recovery_steps)
    manifest = builder.build(mix, budget_bytes, build_options)
    seconds = clock.now_s() - start_at_s
    result = as_json(manifest, seconds, str(out))
    _write(out, manifest, builder.store, result)
    if json:
        print_json(result)
    else:
        _print(manifest, seconds, out, task_set.name)


def as_json(manifest: ModelManifest, seconds: float, out: str) -> dict[str, object]:
    return {
        "version": manifest.version,
        "bytes": manifest.model_bytes,
        "full_bytes": manifest.full_model_bytes,
        "budget_bytes": manifest.budget_bytes,
        "experts_kept": manifest.experts_kept,
        "experts_total": manifest.experts_total,
        "seconds": seconds,
        "seconds_by_phase": dict(manifest.durations_s),
        "quality": dict(manifest.quality),
        "quality_before_recovery": dict(manifest.quality_before_recovery),
        "mix": dict(manifest.mix),
        "method": manifest.method,
        "dtype": manifest.dtype,
        "base_model": manifest.base_model,
        "plan_id": manifest.plan_id,
        "out": out,
    }


def _write(out: Path, manifest: ModelManifest, store: BlobStore, result: dict[str, object]) -> None:
    """Blobs first, the manifest last: a folder with a manifest is whole."""
    blobs = out / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    for digest in sorted(manifest.digests):
        target = blobs / digest
        if target.exists() and target.stat().st_size == store.size_bytes(digest):
            continue
        partial = blobs / f".{digest}.partial"
        with partial.open("wb") as file:
            for offset in range(0, store.size_bytes(digest), 1 << 20):
                file.write(store.read_chunk(digest, offset, 1 << 20))
        partial.replace(target)
    for name, data in (
        ("manifest.pb", manifest.to_proto().SerializeToString(deterministic=True)),
        ("manifest.json", (json_text.dumps(result, indent=2) + "\n").encode()),
    ):
        partial = out / f".{name}.partial"
        partial.write_bytes(data)
        shutil.move(partial, out / name)


def _print(manifest: ModelManifest, seconds: float, out: Path, calibration: str) -> None:
    console = stdout()
    console.print(f"[bold]{manifest.version}[/bold]  merged for {in_shares(manifest.mix)}")
    console.print(
        f"  {in_bytes(manifest.model_bytes)} of {in_bytes(manifest.full_model_bytes)} ({manifest.dtype}; budget "
        f"{manifest.budget_bytes} B), {manifest.experts_kept} of {manifest.experts_total} experts, {in_seconds(seconds)}"
    )
    console.print(f"  quality  {in_scores(manifest.quality)}")
    if manifest.quality_before_recovery != manifest.quality:
        console.print(f"  before recovery  {in_scores(manifest.quality_before_recovery)}")
    console.print(f"  [dim]measured on {calibration}[/dim]\n  {out}")
