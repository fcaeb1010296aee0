"""Experts of one layer held packed: a record of bytes each, unpacked only for the tokens that hit them, many of a form at once.

Stands where a layer's stacked matrices stand (`ExpertStack.weights`); its tensors are the records, so bytes count as they are held. What a
record's bytes mean is `records.py`; which experts take which form is decided elsewhere. To serve, forms of 4 bits may lie in another order
(`four_bits.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from services.model.families.four_bits import FourBitForm, can_lay_out
from services.model.packed import GROUP_WEIGHTS, STORED_BITS, level, scale_shares
from services.model.records import MatrixPlace, RecordLayout

_BYTE_BITS = 8


class PackedForm:
    """Experts of one form, `records` (num_experts, record_bytes) uint8. They are the layer's rows from `first_row` on."""

    def __init__(self, layout: RecordLayout, records: Tensor, first_row: int) -> None:
        if records.dtype != torch.uint8 or records.dim() != 2 or records.shape[1] != layout.num_bytes:
            raise ValueError(f"records: {tuple(records.shape)} of {records.dtype}; {layout.name} takes {layout.num_bytes} bytes each")
        self.layout = layout
        self.records = records
        self.first_row = first_row
        self.num_weights = sum(rows * columns for _, rows, columns in layout.shapes)
        self._places = layout.places()
        self._scales = scale_shares(records.device).unsqueeze(1)
        self._levels = _level_table(layout.bits, records.device) if layout.bits < STORED_BITS else None
        self._powers = 2.0 ** torch.arange(1, layout.bits + 1, device=records.device)
        self._lowest = level(torch.zeros(1, device=records.device), layout.bits)

    def unpacked(self, rows: Tensor) -> dict[str, Tensor]:
        """Matrices of the experts at `rows`: (num_rows, width out, width in) float32 each, to the bit those of `PackedMatrix.unpacked`."""
        taken = self.records.index_select(0, rows)
        if self._levels is None:
            return {place.name: self._values(taken, place) for place in self._places}
        tops = _as(torch.float32, taken[:, : 4 * len(self._places)])
        numbers = taken.int()
        return {place.name: self._on_grid(taken, numbers, tops[:, n], place) for n, place in enumerate(self._places)}

    def _values(self, taken: Tensor, place: MatrixPlace) -> Tensor:
        values = _as(self.layout.stored_dtype, taken[:, place.codes])
        return values.view(-1, place.rows, place.columns).float()

    def _on_grid(self, taken: Tensor, numbers: Tensor, tops: Tensor, place: MatrixPlace) -> Tensor:
        assert self._levels is not None
        rows, columns, bits = place.rows, place.columns, self.layout.bits
        levels = F.embedding(numbers[:, place.codes], self._levels).flatten(1)
        if _BYTE_BITS % bits:  # codes cross bytes: what came is bit by bit, to be put together
            levels = torch.addmv(self._lowest, levels[:, : rows * columns * bits].reshape(-1, bits), self._powers)
            levels = levels.view(-1, rows * columns)
        levels = levels[:, : rows * columns]
        scales = F.embedding(numbers[:, place.scales], self._scales) * tops[:, None, None]
        matrix = _times(levels.reshape(-1, rows, columns), scales.view(-1, rows, place.num_groups))
        if self.layout.rank == 0:
            return matrix
        left = _as(torch.float16, taken[:, place.left]).view(-1, rows, self.layout.rank)
        right = _as(torch.float16, taken[:, place.right]).view(-1, self.layout.rank, columns)
        return torch.baddbmm(matrix, left.float(), right.float())


@dataclass(frozen=True, slots=True)
class FormTokens:
    """Tokens of a step that one form answers: their places among all, and each one's row among the form's experts, ascending."""

    form: PackedForm | FourBitForm
    places: Tensor
    rows: Tensor


class PackedWeights(Mapping[str, Tensor]):
    """All experts of a layer that are held, one row each, form by form; the row after the last answers nothing and takes no bytes."""

    def __init__(self, records: Mapping[RecordLayout, Tensor], device: torch.device | str = "cpu") -> None:
        self.forms: list[PackedForm | FourBitForm] = []
        ends = [0]
        for layout, held in records.items():
            self.forms.append(PackedForm(layout, held, ends[-1]))
            ends.append(ends[-1] + held.shape[0])
        self.num_kept = ends[-1]
        self._ends = torch.tensor(ends[1:], dtype=torch.int64, device=device)
        self._by_name = {form.layout.name: form.records for form in self.forms}

    def __getitem__(self, name: str) -> Tensor:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def shapes_problem(self, full: Mapping[str, tuple[int, int]], out: str) -> str | None:
        """What keeps these from being experts of matrices of `full` sizes, or narrower ones; `out` leads out of the hidden units."""
        for form in self.forms:
            units = {columns if name == out else rows for name, rows, columns in form.layout.shapes}
            narrow = {name: (rows, min(units)) if name == out else (min(units), columns) for name, (rows, columns) in full.items()}
            most = min(columns if name == out else rows for name, (rows, columns) in full.items())
            if len(units) > 1 or min(units) > most or {n: (r, c) for n, r, c in form.layout.shapes} != narrow:
                return f"packed shapes {form.layout.name}"
        return None

    @property
    def is_blocked(self) -> bool:
        return any(isinstance(form, FourBitForm) for form in self.forms)

    def blocked(self) -> PackedWeights:
        """The same experts for serving alone, forms of 4 bits laid out for products where that pays. What is not is shared."""
        made = copy(self)
        made.forms = [
            FourBitForm(form.layout, form.records, form.first_row)
            if isinstance(form, PackedForm) and can_lay_out(form.layout, form.records.device)
            else form
            for form in self.forms
        ]
        made._by_name = {form.layout.name: form.records for form in made.forms}
        return made

    def at(self, row: int) -> tuple[RecordLayout, Tensor]:
        """The record of one expert, which is not laid out."""
        form = self._form_of(row)
        assert isinstance(form, PackedForm), "records are no more to be had of experts that are laid out"
        return form.layout, form.records[row - form.first_row]

    def is_laid_out(self, row: int) -> bool:
        return isinstance(self._form_of(row), FourBitForm)

    def _form_of(self, row: int) -> PackedForm | FourBitForm:
        return next(form for form in self.forms if row < form.first_row + form.records.shape[0])

    def tokens(self, rows: Tensor) -> Iterator[FormTokens]:
        """The tokens of `rows` (num_tokens,), form by form; those whose row is beyond the last are of none."""
        if not self.forms:
            return
        ascending, order = rows.sort(stable=True)
        start = 0
        for form, end in zip(self.forms, torch.searchsorted(ascending, self._ends).tolist(), strict=True):
            if end > start:
                yield FormTokens(form, order[start:end], ascending[start:end] - form.first_row)
            start = end


def _as(dtype: torch.dtype, part: Tensor) -> Tensor:
    """Bytes of records read as values; copied, because they may lie at odd places."""
    return part.clone(memory_format=torch.contiguous_format).view(dtype)


@cache  # one a width: a table of its own for each form of each layer would weigh as much as small experts do
def _level_table(bits: int, device: torch.device) -> Tensor:
    """What each byte holds: (256, 8 / bits) levels, or (256, 8) single bits where codes cross bytes."""
    width = 1 if _BYTE_BITS % bits else bits
    codes = torch.arange(1 << _BYTE_BITS, device=device)
    parts = ((codes[:, None] >> torch.arange(0, _BYTE_BITS, width, device=device)) & ((1 << width) - 1)).float()
    return level(parts, bits) if width == bits else parts


def _times(levels: Tensor, scales: Tensor) -> Tensor:
    """`levels` (n, rows, columns) times one scale a group of columns, (n, rows, groups)."""
    num, rows, columns = levels.shape
    groups = scales.shape[2]
    if columns % groups == 0 and (groups == 1 or columns // groups == GROUP_WEIGHTS):
        return (levels.view(num, rows, groups, columns // groups) * scales.unsqueeze(3)).view(num, rows, columns)
    return levels * scales.repeat_interleave(GROUP_WEIGHTS, dim=2)[:, :, :columns]
