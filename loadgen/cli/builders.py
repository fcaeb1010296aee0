"""A model builder in this process, for commands that merge without a merger service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from loadgen.cli.places import cache_or_home

if TYPE_CHECKING:
    from services.model.build import Builder
    from services.tasks.values import TaskSet


def open_builder(model: str, calibration: TaskSet, dtype: str, device: str, num_threads: int, cache: Path | None) -> Builder:
    """Reads the base model. Builds land in the cache that an embedded stack uses too, so what one built the other has."""
    import torch

    from services.model.build import Builder
    from services.model.checkpoint import read_base

    torch.set_num_threads(num_threads)
    cache_dir = cache_or_home(cache) / "merger"
    base = read_base(model, dtype, device, cache_dir=cache_dir)
    return Builder(base, calibration, cache_dir / base.base_id)
