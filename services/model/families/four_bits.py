"""Experts of 4 bits in the order that torch's kernel for such matrices multiplies from, laid out once instead of unpacked at every step.

The kernel (torch, aten/src/ATen/native/cpu/int4mm_kernel.cpp) takes weights of (code - 8) · step + middle, both in bfloat16, by group.
Level k of `packed.py` is scale · (2k - 15): the same codes, a step of 2 · scale and a middle of scale. So all that is lost is what bfloat16
rounds (by 2^-8 at most each): scales, inputs before products and results after. Sums are of float32. For serving on a CPU alone, without
gradients.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from services.model.packed import GROUP_WEIGHTS, scales_of
from services.model.records import MatrixPlace, RecordLayout

BITS = 4
FEWEST_WEIGHTS = 1 << 15  # of a matrix: below, less time is saved than the 9 % of bytes are worth that scales take on
_ROWS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class FourBitMatrix:
    """(width out, width in)."""

    codes: Tensor  # uint8 (width out, width in / 2), in the kernel's order
    scales: Tensor  # bfloat16 (groups, width out, 2): step and middle

    def product(self, x: Tensor) -> Tensor:
        """`x @ matrix.T`, (num_tokens, width in) to (num_tokens, width out), both bfloat16."""
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.codes, GROUP_WEIGHTS, self.scales)  # type: ignore[no-any-return]


def can_lay_out(layout: RecordLayout, device: torch.device) -> bool:
    """Whether laying experts of this form out is offered and pays."""
    return (
        _is_offered()
        and device.type == "cpu"
        and (layout.bits, layout.rank) == (BITS, 0)
        and all(
            rows % _ROWS_AT_ONCE == 0 and columns % GROUP_WEIGHTS == 0 and rows * columns >= FEWEST_WEIGHTS
            for _, rows, columns in layout.shapes
        )
    )


@cache
def _is_offered() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")


class FourBitForm:
    """Stands where a `PackedForm` stood. `records` (num_experts, bytes) uint8: codes and scales of each matrix, 4.5 bits a weight."""

    def __init__(self, layout: RecordLayout, records: Tensor, first_row: int) -> None:
        """`records` as `RecordLayout` has them."""
        self.layout = layout
        self.first_row = first_row
        sizes = [(rows * columns // 2, rows * columns // GROUP_WEIGHTS * 4) for _, rows, columns in layout.shapes]
        self.records = records.new_empty(len(records), sum(map(sum, sizes)))
        self._matrices: dict[str, list[FourBitMatrix]] = {}
        start = 0
        for number, (place, (codes, scales)) in enumerate(zip(layout.places(), sizes, strict=True)):
            parts = self.records[:, start : start + codes], self.records[:, start + codes : start + codes + scales]
            self._matrices[place.name] = [_laid_out(record, number, place, *held) for record, *held in zip(records, *parts, strict=True)]
            start += codes + scales

    def matrix(self, name: str, row: int) -> FourBitMatrix:
        return self._matrices[name][row]


def _laid_out(record: Tensor, number: int, place: MatrixPlace, codes: Tensor, scales: Tensor) -> FourBitMatrix:
    """One matrix of a record, the layout's `number`th, written into `codes` and `scales`."""
    rows, columns = place.rows, place.columns
    made = FourBitMatrix(codes.view(rows, columns // 2), scales.view(torch.bfloat16).view(place.num_groups, rows, 2))
    packed = record[place.codes].int()
    made.codes.copy_(
        torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.stack([packed & 15, packed >> BITS], 1).view(rows, columns), 1)
    )
    middles = scales_of(record[place.scales], record[4 * number : 4 * number + 4].view(torch.float32)).view(rows, -1).T
    made.scales.copy_(torch.stack([2 * middles, middles], 2))
    return made
