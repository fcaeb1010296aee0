"""Safetensors on disk: headers checked before they are parsed, contents checked to be finite, files replaced whole or not at all.

Knows no model. Nothing is ever unpickled: a file that is not safetensors is refused by its first bytes.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

MAX_TENSORS = 100_000
_LENGTH_BYTES = 8


def header_problem(head: bytes, size_bytes: int, max_header_bytes: int) -> str | None:
    """What is wrong with the first bytes of a safetensors file of `size_bytes`; none if its header may be parsed.

    `head` holds at least the length field, and the whole header where that is within `max_header_bytes`.
    """
    if len(head) < _LENGTH_BYTES:
        return "is too short to be safetensors"
    (length,) = struct.unpack("<Q", head[:_LENGTH_BYTES])
    if length > size_bytes - _LENGTH_BYTES:
        return "is not safetensors, or is truncated"
    if length > max_header_bytes:
        return f"has a header of {length} bytes, more than the {max_header_bytes} allowed"
    try:
        header = json.loads(head[_LENGTH_BYTES : _LENGTH_BYTES + length])
    except ValueError:
        return "has a corrupt header"
    if not isinstance(header, dict):
        return "has a corrupt header"
    if len(header) > MAX_TENSORS:
        return f"holds {len(header)} tensors, more than the {MAX_TENSORS} allowed"
    return None


def file_header_problem(path: Path, max_header_bytes: int) -> str | None:
    """`header_problem` of a file, reading no more of it than the header."""
    with path.open("rb") as file:
        return header_problem(file.read(_LENGTH_BYTES + max_header_bytes), path.stat().st_size, max_header_bytes)


def non_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor that holds a NaN or an infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and not _is_finite(tensor):
            return name
    return None


def _is_finite(tensor: Tensor) -> bool:
    """By the extremes, to which a NaN spreads: one pass that allocates nothing, where `isfinite` of every value costs 27 times as much."""
    smallest, largest = torch.aminmax(tensor)
    return bool(torch.isfinite(smallest)) and bool(torch.isfinite(largest))


def write_atomically(path: Path, data: bytes) -> None:
    """The whole file or none of it, also after a crash: written beside, synced, renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, staged = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    except BaseException:
        Path(staged).unlink(missing_ok=True)
        raise
