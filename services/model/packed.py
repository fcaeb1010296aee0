"""A matrix in few bits: codes on an even grid, one scale a group of weights. What is packed is what is stored, and unpacks to the last bit.

Level `k` of `b` bits is scale · (2k + 1 - 2^b): at one bit a sign times the scale. Scales are held as one byte each, on a logarithmic grid
below the matrix's largest (a step is 4.4 %, and the error of a grid is flat around its best scale). At 16 bits codes are the values.
A low-rank correction, left · right, may be added. Which codes are best is not decided here (`compensation.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import torch
from torch import Tensor

GROUP_WEIGHTS = 64
STORED_BITS = 16  # and above: values as they are
SCALE_STEPS_PER_OCTAVE = 16
_TOP_BYTES = 4
_BYTE_BITS = 8


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """One matrix of an expert, (rows, columns)."""

    bits: int
    shape: tuple[int, int]
    codes: Tensor  # uint8, bit by bit, rows first; at 16 bits the values, (rows, columns)
    scales: Tensor  # uint8 (rows, groups): octaves below `top`, in sixteenths; empty at 16 bits
    top: Tensor  # float32 (1,): the largest scale
    left: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.float16))  # (rows, rank)
    right: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.float16))  # (rank, columns)

    @property
    def num_bytes(self) -> int:
        """Bytes held: codes, scales and correction. Bits and shape travel in the plan."""
        parts = (self.codes, self.scales, self.left, self.right)
        return sum(part.numel() * part.element_size() for part in parts) + (_TOP_BYTES if self.bits < STORED_BITS else 0)

    def unpacked(self) -> Tensor:
        """(rows, columns) float32."""
        values = self.codes.float() if self.bits >= STORED_BITS else self._on_grid()
        return values + self.left.float() @ self.right.float() if self.left.numel() else values

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The written form, for a blob."""
        told = torch.tensor([self.bits, *self.shape], dtype=torch.int32)
        parts = {"codes": self.codes, "scales": self.scales, "top": self.top, "left": self.left, "right": self.right, "form": told}
        return {f"{name}.{part}": tensor for part, tensor in parts.items()}

    @classmethod
    def from_tensors(cls, name: str, tensors: Mapping[str, Tensor]) -> PackedMatrix:
        """Raises ValueError where the parts do not fit each other."""
        try:
            codes, scales, top, left, right, told = (
                tensors[f"{name}.{part}"] for part in ("codes", "scales", "top", "left", "right", "form")
            )
        except KeyError as error:
            raise ValueError(f"packed matrix {name!r}: {error.args[0]} is missing") from error
        bits, rows, columns = told.tolist()
        packed = cls(bits, (rows, columns), codes, scales, top, left, right)
        if packed.num_bytes != packed_bytes((rows, columns), bits, left.shape[1] if left.numel() else 0):
            raise ValueError(f"packed matrix {name!r}: its parts are not those of {rows} x {columns} at {bits} bits")
        return packed

    def _on_grid(self) -> Tensor:
        rows, columns = self.shape
        scales = scales_of(self.scales, self.top)
        each = torch.repeat_interleave(scales, min(GROUP_WEIGHTS, columns), dim=1)[:, :columns]
        codes = _unpacked_bits(self.codes, self.bits, rows * columns).view(rows, columns)
        return level(codes.float(), self.bits) * each


def packed_bytes(shape: tuple[int, int], bits: int, rank: int = 0) -> int:
    """Bytes that `PackedMatrix.num_bytes` will come to."""
    rows, columns = shape
    correction = 2 * rank * (rows + columns)
    if bits >= STORED_BITS:
        return rows * columns * bits // 8 + correction
    return -(-rows * columns * bits // 8) + rows * -(-columns // GROUP_WEIGHTS) + _TOP_BYTES + correction


def level(codes: Tensor, bits: int) -> Tensor:
    """Codes to levels in units of the scale."""
    return codes * 2 + (1 - (1 << bits))


def nearest(weights: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Codes (float) of the levels nearest to `weights`; `scales` broadcast."""
    return ((weights / scales + ((1 << bits) - 1)) / 2).round().clamp(0, (1 << bits) - 1)


def scale_codes(scales: Tensor, top: Tensor) -> Tensor:
    """Scales to bytes: how far below `top`."""
    octaves = torch.log2(top / scales.clamp(min=torch.finfo(torch.float32).tiny))
    return (octaves * SCALE_STEPS_PER_OCTAVE).round().clamp(0, 255).to(torch.uint8)


def scales_of(codes: Tensor, top: Tensor) -> Tensor:
    """Bytes to scales, float32."""
    return top * scale_shares(codes.device)[codes.int()]


@cache
def scale_shares(device: torch.device) -> Tensor:
    """(256,) float32: what share of the largest scale each byte says. In double precision first, so that they are the same everywhere."""
    return torch.exp2(torch.arange(256, dtype=torch.float64, device=device) / -SCALE_STEPS_PER_OCTAVE).float()


def packed_bits(codes: Tensor, bits: int) -> Tensor:
    """Integer codes below 2^bits, any shape, to a string of bytes without gaps."""
    flat = codes.to(torch.uint8).flatten()
    if _BYTE_BITS % bits == 0 and len(flat) * bits % _BYTE_BITS == 0:
        parts = flat.view(-1, _BYTE_BITS // bits) << torch.arange(0, _BYTE_BITS, bits, device=flat.device, dtype=torch.uint8)
        return parts.sum(1, dtype=torch.uint8)
    planes = (flat.cpu().numpy()[:, None] >> np.arange(bits, dtype=np.uint8)) & 1
    return torch.from_numpy(np.packbits(planes.reshape(-1), bitorder="little")).to(flat.device)


def _unpacked_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    planes = np.unpackbits(packed.cpu().numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    return torch.from_numpy((planes << np.arange(bits, dtype=np.uint8)).sum(axis=1, dtype=np.uint8))
