"""Groups, bits, hidden units and rank for each expert by what the traffic needs of it: the form where a byte saves most calibrated error.

Each expert is fitted to every form (`fitting.py`); a layer's errors are weighed by how far its errors move the model's answers, measured on
calibration items; `core/merging/forms.py` chooses. An expert that no byte is left for joins the group of a kept one if that
answers its tokens better than nothing does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from services.core.merging.forms import chosen_forms
from services.core.merging.values import DROPPED, ExpertForm
from services.model.alignment import hidden_axis
from services.model.compressions import Compressed
from services.model.evidence import Evidence, in_float32, with_layer
from services.model.families.base import OUT, ExpertStack
from services.model.fitting import FittedExpert, LayerFitter, form_bytes

BITS = (0, 16)
_UNIT_SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
_FEW_BITS = (1, 2, 3, 4)
_PROBE_SHARE = 1 / 2  # of hidden units, at one bit: a layer held so tells how much its errors matter


@dataclass(frozen=True, slots=True)
class FormTable:
    """Every expert in every form. `errors` (num_experts of all layers, num_forms), weighed by layer; `fitted` by layer and form."""

    forms: tuple[ExpertForm, ...]
    errors: NDArray[np.float64]
    sizes_bytes: NDArray[np.int64]
    fitters: tuple[LayerFitter, ...]
    fitted: tuple[Mapping[ExpertForm, Sequence[FittedExpert]], ...]

    def of_bits(self, bits: int) -> FormTable:
        """Without the forms of other bits; dropping stays."""
        kept = [index for index, form in enumerate(self.forms) if form.bits in (0, bits)]
        forms = tuple(self.forms[index] for index in kept)
        return FormTable(forms, self.errors[:, kept], self.sizes_bytes[:, kept], self.fitters, self.fitted)


def compress(evidence: Evidence, room_bytes: int, bits: int) -> Compressed:
    """`bits` 0 for all forms, else those of so many bits alone."""
    table = evidence.shared.get("fitted") or form_table(evidence)
    assert isinstance(table, FormTable)
    evidence.shared["fitted"] = table
    return in_room(evidence, table if bits == 0 else table.of_bits(bits), room_bytes)


def form_table(evidence: Evidence) -> FormTable:
    """The work that all budgets share."""
    stored = next(iter(evidence.base.model.experts[0].weights.values())).dtype
    stored = torch.float16 if stored == torch.float32 else stored
    errors, sizes, fitters, fitted = [], [], [], []
    forms = candidate_forms(int(evidence.base.model.experts[0].weights[OUT].shape[2]))
    for number, layer in enumerate(evidence.layers):
        fitter = LayerFitter(evidence.rule, in_float32(layer.stack), layer.tokens(), stored)
        experts = range(layer.num_experts)
        held = {form: fitter.fitted(experts, form) for form in forms if form != DROPPED}
        by_form = [[fitter.dropped(e) for e in experts] if form == DROPPED else [held[form][e].error for e in experts] for form in forms]
        probe = next(form for form in forms if form.bits == 1 and form.units >= fitter.num_units * _PROBE_SHARE)
        weight = _sensitivity(evidence, number, held[probe])
        errors.append(np.array(by_form).T * weight)
        sizes.append(np.tile([form_bytes(layer.stack, form) for form in forms], (layer.num_experts, 1)))
        fitters.append(fitter)
        fitted.append(held)
    return FormTable(forms, np.concatenate(errors), np.concatenate(sizes), tuple(fitters), tuple(fitted))


def candidate_forms(num_units: int) -> tuple[ExpertForm, ...]:
    """Nothing at all, and 1 to 16 bits for some or all hidden units."""
    units = sorted({max(1, round(num_units * share)) for share in _UNIT_SHARES})
    narrow = [ExpertForm(bits, kept) for kept in units for bits in _FEW_BITS]
    corrected = [ExpertForm(bits, num_units, max(1, num_units // 64)) for bits in (1, 2)]
    return (DROPPED, *narrow, *corrected, *(ExpertForm(8, kept) for kept in units[-3:]), *(ExpertForm(16, kept) for kept in units))


def in_room(evidence: Evidence, table: FormTable, room_bytes: int) -> Compressed:
    """The experts of a table that a budget allows."""
    chosen = chosen_forms(table.errors, table.sizes_bytes, room_bytes)
    stacks, start = [], 0
    for number, layer in enumerate(evidence.layers):
        forms = [table.forms[index] for index in chosen[start : start + layer.num_experts]]
        start += layer.num_experts
        kept = {expert: table.fitted[number][form][expert] for expert, form in enumerate(forms) if form != DROPPED}
        stacks.append(stack_of(layer.stack, kept, hosts(table.fitters[number], kept, layer.num_experts)))
    num_bytes = int(table.sizes_bytes[np.arange(len(chosen)), chosen].sum())
    return Compressed(tuple(stacks), num_bytes, _told([table.forms[index] for index in chosen]))


def hosts(fitter: LayerFitter, kept: Mapping[int, FittedExpert], num_experts: int) -> list[int | None]:
    """Which kept expert answers each expert's tokens: itself, the best other, or none where nothing is better than any of them."""
    found: list[int | None] = []
    for expert in range(num_experts):
        if expert in kept:
            found.append(expert)
            continue
        errors = [(fitter.sent_to(expert, fitted), host) for host, fitted in kept.items()]
        least, host = min(errors, default=(float("inf"), -1))
        found.append(host if least < fitter.dropped(expert) else None)
    return found


def stack_of(original: ExpertStack, kept: Mapping[int, FittedExpert], sent_to: Sequence[int | None]) -> ExpertStack:
    """Kept experts one a row, narrow ones filled up with units that do nothing; a last row of zeros where some tokens get nothing."""
    order = sorted(kept)
    row_of: dict[int | None, int] = {expert: row for row, expert in enumerate(order)}
    row_of[None] = len(order)
    num_rows = len(order) + (None in sent_to)
    width = max((kept[expert].matrices[OUT].shape[1] for expert in order), default=1)
    weights = {}
    for name, weight in original.weights.items():
        shape = list(weight.shape[1:])
        axis = hidden_axis(name) - 1
        shape[axis] = width
        weights[name] = weight.new_zeros(num_rows, *shape)
        for row, expert in enumerate(order):
            matrix = kept[expert].matrices[name].unpacked()
            weights[name][row].narrow(axis, 0, matrix.shape[axis]).copy_(matrix)
    return ExpertStack(weights, torch.tensor([row_of[host] for host in sent_to], dtype=torch.int64))


def _sensitivity(evidence: Evidence, number: int, probe: Sequence[FittedExpert]) -> float:
    """Divergence of the answers for one unit of error in this layer."""
    kept = dict(enumerate(probe))
    stack = stack_of(evidence.layers[number].stack, kept, list(kept))
    moved = evidence.divergence(with_layer(evidence.base.model, number, stack))
    return max(moved, 0.0) / max(sum(fitted.error for fitted in probe), 1e-30)


def _told(forms: Sequence[ExpertForm]) -> str:
    kept = [form for form in forms if form != DROPPED]
    if not kept:
        return "no expert kept"
    bits = sum(form.bits for form in kept) / len(kept)
    return f"{len(kept)} of {len(forms)} experts, {bits:.1f} bits, {sum(form.units for form in kept) / len(kept):.0f} units on average"
