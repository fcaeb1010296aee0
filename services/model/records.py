"""How the bytes of one packed expert lie in a record: what is held in memory, and what a blob holds, to the last bit.

A record has the largest scale of each matrix (float32), then matrix by matrix, by name: codes, scales and the two factors of a low-rank
correction; at 16 bits the values alone. It is exactly as long as its matrices are said to be (`packed.packed_bytes`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from services.model.packed import GROUP_WEIGHTS, STORED_BITS, PackedMatrix, packed_bytes

_TOP_BYTES = 4
_FACTOR_BYTES = 2
_STORED = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_MOST_WIDTH = 1 << 20
_NAME = re.compile(
    r"(?P<bits>[1-8]|16)bit(?:-(?P<stored>float16|bfloat16))?(?:-rank(?P<rank>[1-9]\d{0,5}))?(?P<shapes>(?:-\w+=\d{1,7}x\d{1,7})+)"
)


@dataclass(frozen=True, slots=True)
class MatrixPlace:
    """Where one matrix is in a record."""

    name: str
    rows: int
    columns: int
    codes: slice
    scales: slice
    left: slice
    right: slice

    @property
    def num_groups(self) -> int:
        return -(-self.columns // GROUP_WEIGHTS)


@dataclass(frozen=True, slots=True, order=True)
class RecordLayout:
    """`shapes`: name, rows and columns of each matrix as it is held, sorted by name. `stored`: dtype of values at 16 bits, else empty."""

    bits: int
    rank: int
    shapes: tuple[tuple[str, int, int], ...]
    stored: str = ""

    @property
    def name(self) -> str:
        """Says everything, and is what a blob's tensor is called: `3bit-wi=16x32-wo=32x16`."""
        stored = f"-{self.stored}" if self.stored else ""
        rank = f"-rank{self.rank}" if self.rank else ""
        return f"{self.bits}bit{stored}{rank}" + "".join(f"-{name}={rows}x{columns}" for name, rows, columns in self.shapes)

    @classmethod
    def parse(cls, name: str) -> RecordLayout:
        """The layout of that `name`; ValueError where it is none."""
        found = _NAME.fullmatch(name)
        if found is None:
            raise ValueError(f"{name[:80]!r} is not the name of a packed expert")
        shapes = tuple(_shape(part) for part in found["shapes"][1:].split("-"))
        layout = cls(int(found["bits"]), int(found["rank"] or 0), shapes, found["stored"] or "")
        names = [matrix for matrix, _, _ in shapes]
        widths = [width for _, rows, columns in shapes for width in (rows, columns)]
        if layout.name != name or names != sorted(set(names)) or not all(1 <= width <= _MOST_WIDTH for width in widths):
            raise ValueError(f"{name[:80]!r} does not name a packed expert's matrices once each, with sizes from 1")
        if (layout.bits == STORED_BITS) != bool(layout.stored) or (layout.bits == STORED_BITS and layout.rank):
            raise ValueError(f"{name[:80]!r}: values have a dtype and no correction at 16 bits, and only there")
        return layout

    @classmethod
    def of(cls, matrices: Mapping[str, PackedMatrix]) -> RecordLayout:
        first = next(iter(matrices.values()))
        stored = str(first.codes.dtype).removeprefix("torch.") if first.bits == STORED_BITS else ""
        rank = int(first.left.shape[1]) if first.left.numel() else 0
        return cls(first.bits, rank, tuple((name, *matrices[name].shape) for name in sorted(matrices)), stored)

    @property
    def stored_dtype(self) -> torch.dtype:
        return _STORED[self.stored]

    @property
    def num_bytes(self) -> int:
        return sum(packed_bytes((rows, columns), self.bits, self.rank) for _, rows, columns in self.shapes)

    def places(self) -> list[MatrixPlace]:
        """Of every matrix, in the order of their names."""
        at = 0 if self.bits == STORED_BITS else _TOP_BYTES * len(self.shapes)
        places = []
        for name, rows, columns in self.shapes:
            few = self.bits < STORED_BITS
            sizes = (
                -(-rows * columns * self.bits // 8),
                rows * -(-columns // GROUP_WEIGHTS) if few else 0,
                _FACTOR_BYTES * rows * self.rank,
                _FACTOR_BYTES * self.rank * columns,
            )
            slices = []
            for size in sizes:
                slices.append(slice(at, at + size))
                at += size
            places.append(MatrixPlace(name, rows, columns, *slices))
        assert at == self.num_bytes
        return places

    def record(self, matrices: Mapping[str, PackedMatrix]) -> Tensor:
        """(num_bytes,) uint8 of one expert in this layout."""
        parts = [] if self.bits == STORED_BITS else [matrices[name].top for name, _, _ in self.shapes]
        for name, _, _ in self.shapes:
            matrix = matrices[name]
            parts += [matrix.codes, matrix.scales, matrix.left, matrix.right]
        record = torch.cat([part.contiguous().flatten().view(torch.uint8) for part in parts if part.numel()])
        assert record.numel() == self.num_bytes
        return record

    def problem(self, record: Tensor) -> str | None:
        """What is wrong with a record that came from outside; none if it can be held."""
        if record.dtype != torch.uint8 or tuple(record.shape) != (self.num_bytes,):
            return f"{tuple(record.shape)} of {record.dtype}, {self.name} takes {self.num_bytes} bytes"
        floats = []
        if self.bits == STORED_BITS:
            floats = [record[place.codes].clone().view(self.stored_dtype) for place in self.places()]
        else:
            tops = record[: _TOP_BYTES * len(self.shapes)].clone().view(torch.float32)
            if not bool((tops >= 0).all()):
                return "a largest scale is below 0 or no number"
            floats = [tops, *(record[part].clone().view(torch.float16) for place in self.places() for part in (place.left, place.right))]
        return None if all(bool(torch.isfinite(part).all()) for part in floats) else "holds NaN or infinity"


def _shape(text: str) -> tuple[str, int, int]:
    name, _, size = text.partition("=")
    rows, _, columns = size.partition("x")
    return name, int(rows), int(columns)
