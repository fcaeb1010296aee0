"""Safetensors on disk: headers checked before they are parsed, contents checked to be finite, files replaced whole or not at all.

Knows no model. Nothing is ever unpickled: a file that is not safetensors is refused by its first bytes.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO

import torch
from safetensors.torch import save
from torch import Tensor

MAX_TENSORS = 100_000
_LENGTH_BYTES = 8
PAGE_BYTES = 4096
DTYPES = {  # what safetensors calls them
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.bool: "BOOL",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
}  # fmt: skip


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
    with whole_file(path) as file:
        file.write(data)


def safetensors_header(told: Mapping[str, tuple[torch.dtype, Sequence[int]]], aligned_bytes: int = PAGE_BYTES) -> bytes:
    """The first bytes of a safetensors file whose tensors follow in this order; the first begins at a multiple of `aligned_bytes`.

    For files that are written bit by bit, because the library's own writer copies all tensors more than once.
    """
    header: dict[str, object] = {}
    offset = 0
    for name, (dtype, shape) in told.items():
        end = offset + prod(shape) * dtype.itemsize
        header[name] = {"dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    padded = text.ljust(-(-(len(text) + _LENGTH_BYTES) // aligned_bytes) * aligned_bytes - _LENGTH_BYTES)
    return struct.pack("<Q", len(padded)) + padded


def safetensors_chunks(tensors: Mapping[str, Tensor]) -> list[bytes | memoryview]:
    """What safetensors' `save` gives, byte for byte, in parts that are not copied where all tensors are of one type."""
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) != 1 or not dtypes <= DTYPES.keys():
        return [save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})]
    ordered = dict(sorted(tensors.items()))
    header = safetensors_header({name: (tensor.dtype, tensor.shape) for name, tensor in ordered.items()}, _LENGTH_BYTES)
    return [header, *(raw_bytes(tensor) for tensor in ordered.values())]


def raw_bytes(tensor: Tensor) -> memoryview:
    """What of a tensor stands in a safetensors file."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to be written bit by bit that appears under its name when all of it is there, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, staged = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    except BaseException:
        Path(staged).unlink(missing_ok=True)
        raise
