"""Readers of public datasets, one file a dataset; the files themselves are the registry.

A dataset module has `SCORER` (a name of `services.tasks.scoring.SCORERS`), `TEMPLATES` (prompt templates by name, "short" the default)
and `read(path, template) -> tuple[TaskItem, ...]`, which takes the published form and the normalised one and raises `TasksError`.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from services.tasks.errors import SourceError
from services.tasks.values import TaskItem


class Dataset(Protocol):
    SCORER: str
    TEMPLATES: Mapping[str, str]

    def read(self, path: Path, template: str) -> tuple[TaskItem, ...]: ...


def dataset_names() -> tuple[str, ...]:
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def dataset(name: str) -> Dataset:
    if name not in dataset_names():
        raise SourceError(f"{name!r} is no dataset; known are {', '.join(dataset_names())}")
    return cast(Dataset, import_module(f"{__name__}.{name}"))


def read_dataset(name: str, path: Path, template: str = "short") -> tuple[TaskItem, ...]:
    """All items of one file, or an error: nothing half-read."""
    module = dataset(name)
    if template not in module.TEMPLATES:
        raise SourceError(f"{template!r} is no prompt template of {name}; it has {', '.join(sorted(module.TEMPLATES))}")
    items = module.read(path, module.TEMPLATES[template])
    if not items:
        raise SourceError(f"{path}: no {name} item in it")
    return items
