"""Opens a task set from what a user wrote after `--tasks`: the toy world, a JSONL file, or public datasets; in one of four splits.

`toy` · `FILE.jsonl` (`{"task","id","prompt","references"}`) · `DATASET[/TEMPLATE]:PATH`, where PATH is a file or a directory with
train, dev (or val) and test files; several datasets are joined with commas. A single file has no splits of its own: everything in it is
scored, and calibration is a fixed share of it (said in the name of the task set).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from services.tasks import jsonl
from services.tasks.datasets import dataset, dataset_names, read_dataset
from services.tasks.errors import SourceError
from services.tasks.values import TaskItem, TaskSet

Split = Literal["train", "calibration", "heldout", "all"]
CALIBRATION_SHARE = 0.25
FEWEST_CALIBRATION_ITEMS = 16
SHARE_SEED = 0

_FILE_NAMES: Mapping[Split, tuple[str, ...]] = {
    "train": ("train",),
    "calibration": ("train", "dev", "val"),
    "heldout": ("dev", "val", "test"),
    "all": ("train", "dev", "val", "test"),
}


def open_tasks(spec: str, split: Split = "all", items_per_type: int | None = None) -> TaskSet:
    """Raises `SourceError` or `RowError` with the cure. `items_per_type` takes an even, fixed sample of each type."""
    if split not in get_args(Split):
        raise SourceError(f"split: {split!r} is none of {', '.join(get_args(Split))}")
    task_set = _toy(split) if spec == "toy" else _from_files(spec, split)
    return task_set if items_per_type is None else TaskSet(task_set.name, sampled(task_set.items, items_per_type), task_set.scorers)


def unseen(scored: TaskSet, seen: TaskSet) -> TaskSet:
    """What of `scored` is not in `seen`: where something is trained on `seen`, nothing else may be scored."""
    prompts = {item.prompt for item in seen.items}
    items = tuple(item for item in scored.items if item.prompt not in prompts)
    name = scored.name if len(items) == len(scored.items) else f"{scored.name}, without the calibration items"
    return TaskSet(name, items, scored.scorers)


def sampled(items: tuple[TaskItem, ...], items_per_type: int) -> tuple[TaskItem, ...]:
    """At most so many items of each type, drawn with a fixed seed, in their own order."""
    rng = np.random.default_rng(SHARE_SEED)
    kept: set[int] = set()
    for task_type in sorted({item.task_type for item in items}):
        places = [n for n, item in enumerate(items) if item.task_type == task_type]
        kept.update(rng.permutation(places)[:items_per_type].tolist())
    return tuple(item for n, item in enumerate(items) if n in kept)


def _toy(split: Split) -> TaskSet:
    from services.tasks.toy import toy_world

    world = toy_world()
    if split == "all":
        sets = (world.train, world.calibration, world.heldout)
        return TaskSet("toy", tuple(item for task_set in sets for item in task_set.items), world.heldout.scorers)
    return {"train": world.train, "calibration": world.calibration, "heldout": world.heldout}[split]


def _from_files(spec: str, split: Split) -> TaskSet:
    if not any(spec.startswith((f"{name}:", f"{name}/")) and ":" in spec for name in dataset_names()):
        return _from_jsonl(spec, split)
    parts = [_from_dataset(part, split) for part in spec.split(",")]
    scorers = {task_type: scorer for part in parts for task_type, scorer in part.scorers.items()}
    if len(scorers) < len(parts):
        raise SourceError(f"{spec}: a dataset is named twice; name each once")
    return TaskSet(", ".join(part.name for part in parts), tuple(item for part in parts for item in part.items), scorers)


def _from_jsonl(spec: str, split: Split) -> TaskSet:
    path = Path(spec)
    if path.is_dir() or not path.exists():
        what = "is a directory" if path.is_dir() else "does not exist"
        known = ", ".join(f"{name}:PATH" for name in dataset_names())
        raise SourceError(f"tasks: {spec} {what}; give toy, a JSONL file, or {known}")
    items = jsonl.read(path)
    return _of_single_file(path.name, items, {item.task_type: "exact_match" for item in items}, split)


def _from_dataset(part: str, split: Split) -> TaskSet:
    head, _, text = part.partition(":")
    name, _, template = head.partition("/")
    if name not in dataset_names() or not text:
        raise SourceError(f"tasks: {part!r} is not DATASET[/TEMPLATE]:PATH; datasets are {', '.join(dataset_names())}")
    path, scorers = Path(text), {name: dataset(name).SCORER}
    if not path.is_dir():
        return _of_single_file(f"{name} ({path.name})", read_dataset(name, path, template or "short"), scorers, split)
    files = _split_files(name, path, split)
    items = tuple(item for file in files for item in read_dataset(name, file, template or "short"))
    label = f"{name} ({', '.join(file.name for file in files)})"
    if split != "calibration":
        return TaskSet(label, items, scorers)
    return _of_single_file(label, items, scorers, split, also_scored=files == _split_files(name, path, "heldout"))


def _split_files(name: str, directory: Path, split: Split) -> list[Path]:
    """The files of a split by their names; the first kind that is there, all kinds for `all`."""
    suffixes = (".jsonl", ".json", ".tsv")
    files = sorted(file for file in directory.iterdir() if file.is_file() and file.name.removesuffix(".gz").endswith(suffixes))
    found: list[Path] = []
    for kind in _FILE_NAMES[split]:
        found += [file for file in files if kind in file.name.lower() and file not in found]
        if found and split != "all":
            break
    if not found:
        raise SourceError(
            f"{directory}: no {name} file for the split {split!r} (a name with {' or '.join(_FILE_NAMES[split])}); give a file"
        )
    return found


def _of_single_file(name: str, items: tuple[TaskItem, ...], scorers: Mapping[str, str], split: Split, also_scored: bool = True) -> TaskSet:
    if split != "calibration":
        return TaskSet(name, items, scorers)
    kept: list[TaskItem] = []
    for task_type in sorted(scorers):
        of_type = tuple(item for item in items if item.task_type == task_type)
        kept += sampled(of_type, max(FEWEST_CALIBRATION_ITEMS, round(CALIBRATION_SHARE * len(of_type))))
    note = ", scored items included" if also_scored else ""
    return TaskSet(f"{name}: a fixed {CALIBRATION_SHARE:.0%} of it for calibration{note}", tuple(kept), scorers)
