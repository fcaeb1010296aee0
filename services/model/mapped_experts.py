"""Experts in files that are mapped into memory: one file a layer, hidden units first in every matrix, as merging reads them.

A layer is written a matrix at a time and never held; what is read of it is the page cache's, and can be given back (`release`).
A file is whole or absent, and looked at no further than its header afterwards: its values were checked when it was written.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from services.model.errors import CheckpointError
from services.model.families.base import OUT, ExpertStack
from services.model.tensor_files import non_finite, raw_bytes, safetensors_header, whole_file

Shapes = Mapping[str, tuple[int, ...]]  # of one expert's matrices as a model has them, by name
ReadMatrix = Callable[[str, int], Tensor]  # a matrix's name and the expert


@dataclass(slots=True)
class MappedExperts(ExpertStack):
    """A stack whose weights are a file. `wo` is a transposed view."""

    file: mmap.mmap

    def release(self) -> None:
        self.file.madvise(mmap.MADV_DONTNEED)


def map_layer(path: Path, num_experts: int, shapes: Shapes, dtype: torch.dtype) -> MappedExperts | None:
    """The layer that a file holds; none where it is absent or not the file that `write_layer` would write."""
    header = _header(num_experts, shapes, dtype)
    try:
        with path.open("rb") as file:
            if file.read(len(header)) != header or path.stat().st_size != len(header) + _num_bytes(num_experts, shapes, dtype):
                return None
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError:
        return None
    _in_large_pages(mapped)
    weights, offset = {}, len(header)
    for name, shape in shapes.items():
        count = num_experts * prod(shape)
        stored = torch.frombuffer(mapped, dtype=dtype, count=count, offset=offset).view(num_experts, *_stored(name, shape))
        weights[name] = stored.transpose(1, 2) if _is_turned(name, shape) else stored
        offset += count * dtype.itemsize
    return MappedExperts(weights, torch.arange(num_experts), mapped)


def write_layer(path: Path, num_experts: int, shapes: Shapes, dtype: torch.dtype, read: ReadMatrix) -> None:
    """A layer's file from matrices in the model's own layout, each read once, in the order of names and experts."""
    with whole_file(path) as file:
        file.write(_header(num_experts, shapes, dtype))
        for name, shape in shapes.items():
            for expert in range(num_experts):
                matrix = read(name, expert)
                if non_finite({name: matrix}) is not None:
                    raise CheckpointError(
                        f"{path.stem}: {name} of expert {expert} holds NaN or infinity in {dtype}; use a whole checkpoint"
                    )
                file.write(raw_bytes(matrix.T if _is_turned(name, shape) else matrix))
    _forget_pages(path)


def _in_large_pages(mapped: mmap.mmap) -> None:
    """Read from the disk in large pages, where the system has them: with small ones, mapping costs as much as merging."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel built without them
            mapped.madvise(mmap.MADV_HUGEPAGE)


def _forget_pages(path: Path) -> None:
    """Out of the page cache, where what was written lies in small pages."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _is_turned(name: str, shape: tuple[int, ...]) -> bool:
    return name == OUT and len(shape) == 2


def _stored(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[::-1] if _is_turned(name, shape) else shape


def _num_bytes(num_experts: int, shapes: Shapes, dtype: torch.dtype) -> int:
    return num_experts * sum(map(prod, shapes.values())) * dtype.itemsize


def _header(num_experts: int, shapes: Shapes, dtype: torch.dtype) -> bytes:
    """`wo` has another name in the file than in a model, because it lies there turned."""
    names = {name: f"{name}.hidden_first" if _is_turned(name, shape) else name for name, shape in shapes.items()}
    return safetensors_header({names[name]: (dtype, (num_experts, *_stored(name, shape))) for name, shape in shapes.items()})
