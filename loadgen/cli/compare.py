"""`moedge merge --compare`: score against bytes of every way to make experts smaller; a table, a plot and one JSON file."""

from __future__ import annotations

import json as json_text
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from loadgen.cli.console import CommandError, print_json, stderr, stdout, table
from loadgen.cli.places import model_or_demo, tasks_or_toy
from loadgen.units import in_bytes

if TYPE_CHECKING:
    from services.model.comparison import Comparison, Point
    from services.tasks.values import TaskSet


def compared(
    out: Path,
    model: str | None,
    tasks: str | None,
    task: str | None,
    names: str,
    budgets: str,
    items: int,
    dtype: str,
    device: str,
    threads: int,
    *,
    as_json: bool,
) -> None:
    """Compares for one task type, or for each; options as the command has them."""
    import torch

    from services.model.checkpoint import read_base
    from services.model.comparison import compare
    from services.model.compressions import compression, compressions

    calibration, scored = split(tasks_or_toy(tasks, model), items)
    methods = tuple(name.strip() for name in names.split(",") if name.strip()) or compressions()
    for name in methods:
        compression(name)  # an unknown one is told before any work
    rooms = _rooms(budgets)
    types = scored.task_types if task is None else (task,)
    if unknown := sorted(set(types) - set(scored.task_types)):
        raise CommandError(f"task: {unknown[0]!r} has no items; there are {', '.join(scored.task_types)}")
    torch.set_num_threads(threads)
    base = read_base(model_or_demo(model), dtype, device)
    console = stderr()

    def tell(row: str, fraction: float) -> None:
        if not as_json:
            console.print(f"[dim]{fraction:4.0%}  {row}[/dim]")

    found = [compare(base, t, calibration.of_type(t), scored, methods, rooms, tell) for t in types]
    told: dict[str, object] = {
        "base_model": base.base_id,
        "dtype": dtype,
        "calibrated_on": calibration.name,
        "scored_on": scored.name,
        "comparisons": [asdict(comparison) for comparison in found],
    }
    files = _written(found, told, out)
    if as_json:
        print_json({**told, "files": [str(file) for file in files]})
        return
    for comparison in found:
        _print(comparison, rooms)
    stdout().print(f"[dim]calibrated on {calibration.name}, scored on {scored.name}[/dim]\n" + "\n".join(map(str, files)))


def split(source: str, items: int) -> tuple[TaskSet, TaskSet]:
    """Items to calibrate on, and others to score on. A source without splits is cut in two: its even items, and its odd ones."""
    from services.tasks.sources import open_tasks, sampled
    from services.tasks.values import TaskSet

    calibration, scored = open_tasks(source, "calibration"), open_tasks(source, "heldout")
    if {item.prompt for item in calibration.items} & {item.prompt for item in scored.items}:
        whole = open_tasks(source, "all")
        calibration = TaskSet(f"{whole.name}, even lines", whole.items[1::2], whole.scorers)
        scored = TaskSet(f"{whole.name}, odd lines", whole.items[::2], whole.scorers)
    return calibration, TaskSet(scored.name, sampled(scored.items, items), scored.scorers)


def _rooms(budgets: str) -> tuple[float, ...]:
    try:
        rooms = tuple(float(part) for part in budgets.split(","))
    except ValueError:
        rooms = ()
    if not rooms or not all(0 < room <= 64 for room in rooms):
        raise CommandError(f"budgets: {budgets!r} is not a list of bits; give numbers such as 4,1.25,0.56")
    return rooms


def _written(found: Sequence[Comparison], told: dict[str, object], out: Path) -> tuple[Path, ...]:
    from loadgen.cli.curves import save_curves

    out.mkdir(parents=True, exist_ok=True)
    path = out / "compare.json"
    path.write_text(json_text.dumps(told, indent=2) + "\n", encoding="utf-8")
    return (path, *save_curves(found, out))


def _print(comparison: Comparison, rooms: Sequence[float]) -> None:
    console = stdout()
    title = (
        f"{comparison.task_type}: score by room, in bits for each original expert weight "
        f"(full model {comparison.full_score:.3f} at {comparison.stored_bits} bits; every expert zero {comparison.zero_score:.3f})"
    )
    console.print(table(title, ("experts made smaller by", *(f"{room:g}" for room in rooms)), list(_rows(comparison, rooms))))
    unmerged = [point for point in comparison.points if point.budget_bits is None]
    rows = [(p.method, str(p.bits), f"{p.bits_per_weight:.2f}", in_bytes(p.model_bytes), f"{p.score:.3f}") for p in unmerged]
    if rows:
        console.print(table("Unmerged, at each bit width", ("quantised", "bits", "with scales", "model", "score"), rows))
    console.print(
        f"[dim]{comparison.num_calibration} calibration items and {comparison.num_spliced} spliced from them, "
        f"{comparison.num_scored} other items scored by greedy generation[/dim]"
    )


def _rows(comparison: Comparison, rooms: Sequence[float]) -> Iterator[tuple[str, ...]]:
    by_name: dict[str, dict[float, Point]] = {}
    for point in comparison.points:
        if point.budget_bits is not None:
            by_name.setdefault(point.name, {})[point.budget_bits] = point
    for name, points in by_name.items():
        yield name, *(f"{points[room].score:.3f}" if room in points else "-" for room in rooms)
    best = [comparison.best_unmerged(room) for room in rooms]
    if any(best):
        yield "unmerged, most that fits", *("-" if point is None else f"{point.score:.3f}" for point in best)
