"""Every expert of a base model in every form, fitted once to calibration items of all task types, and what each costs each type.

A version for any mix then needs no weights but those chosen here: a choice, not a fit. Experts used by several task types are therefore
fitted to all of them alike, whatever the mix; that is the price of builds in milliseconds and of updates that ship only changed forms.
Cached on disk; a cache that cannot be read is made again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import blake3
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from services.core.merging.errors import OptionError
from services.core.merging.fitted import FormErrors
from services.core.merging.recipes import FITTED
from services.core.merging.values import DROPPED, ExpertForm, MergePlan
from services.model.checkpoint import BaseModel
from services.model.evidence import Evidence, LayerEvidence, gather, in_float32, with_layer
from services.model.families.base import OUT, ExpertStack
from services.model.families.layers import apply_experts
from services.model.families.packed_weights import PackedWeights
from services.model.fitting import LayerFitter, form_bytes
from services.model.records import RecordLayout
from services.model.recovery import Example
from services.model.splicing import spliced
from services.model.tensor_files import header_problem, write_atomically

FEWEST_EXAMPLES = 1024  # of a task type; fewer are filled up by splicing, up to `SPLICED_FOR_EACH` for each
SPLICED_FOR_EACH = 6
PROBED_EXAMPLES = 192  # of each task type, on which is judged how much a layer's errors matter
MAX_TABLE_BYTES = 2 << 30
PROBE_BITS = 2  # the narrowest form of at least half the hidden units in so few bits: a layer held so tells how much its errors matter
FORMAT = "1"  # raise it when the same model and examples would give other forms
_MAX_HEADER_BYTES = 16 << 20

Tell = Callable[[float], None]  # share of the work that is done


@dataclass(frozen=True, slots=True)
class FormTable:
    """`layouts` by form, without DROPPED; `records` by layer and form, (num_experts, record_bytes) uint8."""

    costs: FormErrors
    layouts: tuple[tuple[RecordLayout, ...], ...]
    records: tuple[tuple[Tensor, ...], ...]

    def stacks(self, plan: MergePlan, device: torch.device | str = "cpu") -> list[ExpertStack]:
        """The experts of a plan. Its groups are in the order of their forms, so rows are groups."""
        return [self._stack(number, plan, device) for number in range(len(plan.layers))]

    def _stack(self, number: int, plan: MergePlan, device: torch.device | str) -> ExpertStack:
        layer = plan.layers[number]
        place = {form: n for n, form in enumerate(self.costs.forms[1:])}
        chosen: dict[RecordLayout, list[Tensor]] = {}
        for group, form in zip(layer.groups, layer.forms, strict=True):
            if form != DROPPED:
                chosen.setdefault(self.layouts[number][place[form]], []).append(self.records[number][place[form]][group[0]])
        assert list(chosen) == sorted(chosen)
        held = PackedWeights({layout: torch.stack(records).to(device) for layout, records in chosen.items()}, device)
        return ExpertStack(held, torch.tensor(layer.index_map, dtype=torch.int64, device=device))


def form_table(
    base: BaseModel, examples: Mapping[str, Sequence[Example]], cache_dir: Path | None = None, tell: Tell | None = None
) -> FormTable:
    """The table for calibration examples by task type; from `cache_dir` where it was made before."""
    forms, sizes = forms_of(base)
    path = None if cache_dir is None else cache_dir / f"forms-{_table_id(base, examples, forms)}.safetensors"
    found = None if path is None else _read(path, base, forms, sizes)
    if found is not None:
        return found
    made = _Making(base, examples, forms, sizes).table(tell)
    if path is not None:
        write_atomically(path, _written(made))
    return made


def forms_of(base: BaseModel) -> tuple[tuple[ExpertForm, ...], NDArray[np.int64]]:
    """The forms that experts are fitted to, and bytes by layer and form."""
    forms = served_forms(int(base.model.experts[0].weights[OUT].shape[2]))
    return forms, np.array([[form_bytes(stack, form) for form in forms] for stack in base.model.experts], dtype=np.int64)


def served_forms(num_units: int) -> tuple[ExpertForm, ...]:
    """Few, because a step unpacks a form at a time, and so placed that more of them hardly keep more (README.md)."""
    shares = ((2, 1 / 4), (2, 1 / 2), (2, 1.0), (4, 1 / 4), (4, 1 / 2), (4, 3 / 4), (4, 1.0), (8, 1.0), (16, 1.0))
    return (DROPPED, *dict.fromkeys(ExpertForm(bits, max(1, round(num_units * share))) for bits, share in shares))


def refuse_too_large(base: BaseModel) -> None:
    """Raises OptionError where a table would take more than `MAX_TABLE_BYTES`."""
    _, sizes = forms_of(base)
    needed = sum(int(row.sum()) * stack.num_kept for row, stack in zip(sizes, base.model.experts, strict=True))
    if needed > MAX_TABLE_BYTES:
        raise OptionError(f"method {FITTED!r}: the experts of this model in every form take {needed} bytes, too many; use another method")


class _Making:
    """One table being made: evidence by task type, then layer by layer."""

    def __init__(
        self, base: BaseModel, examples: Mapping[str, Sequence[Example]], forms: Sequence[ExpertForm], sizes: NDArray[np.int64]
    ) -> None:
        self._base = base
        self._types = tuple(sorted(examples))
        self._forms = tuple(forms)
        self._sizes = sizes
        self._num_examples = []
        self._evidence = []
        for task_type in self._types:
            real = examples[task_type]
            more = spliced(base.model, real, max(0, min(SPLICED_FOR_EACH * len(real), FEWEST_EXAMPLES - len(real))))
            every = max(1, len(real) // PROBED_EXAMPLES)
            probes = real[::every][:PROBED_EXAMPLES]
            self._evidence.append(gather(base, probes, [*(one for one in real if one not in set(probes)), *more]))
            self._num_examples.append(len(real) + len(more))

    def table(self, tell: Tell | None) -> FormTable:
        num_layers = len(self._base.model.experts)
        made = []
        for number in range(num_layers):
            if tell is not None:
                tell(number / num_layers)
            made.append(self._layer(number))
        errors, sent, layouts, records = zip(*made, strict=True)
        costs = FormErrors(self._base.base_id, self._types, self._forms, np.stack(errors, 1), np.stack(sent, 1), self._sizes)
        return FormTable(costs, tuple(layouts), tuple(records))

    def _layer(self, number: int) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[RecordLayout, ...], tuple[Tensor, ...]]:
        parts = [evidence.layers[number] for evidence in self._evidence]
        errors = _TypedErrors(self._evidence[0], parts, self._num_examples)
        stored = next(iter(parts[0].stack.weights.values())).dtype
        fitter = LayerFitter(
            self._evidence[0].rule,
            in_float32(parts[0].stack),
            _joined(parts).tokens(),
            torch.float16 if stored == torch.float32 else stored,
        )
        layouts, records, by_form = [], [], [errors.of(None)]
        for form in self._forms[1:]:
            fitted = fitter.fitted(range(parts[0].num_experts), form)
            layout = RecordLayout.of(fitted[0].matrices)
            layouts.append(layout)
            records.append(torch.stack([layout.record(one.matrices) for one in fitted]))
            by_form.append(errors.of(PackedWeights({layout: records[-1]})))
        probe = next(n for n, form in enumerate(self._forms) if form.bits == PROBE_BITS and 2 * form.units >= fitter.num_units)
        moved = self._moved(number, ExpertStack(PackedWeights({layouts[probe - 1]: records[probe - 1]}), parts[0].stack.index_map))
        weights = moved / np.maximum(by_form[probe].sum(1), 1e-30)
        matters = weights[:, None, None]
        return np.stack(by_form, 2) * matters, errors.sent() * matters, tuple(layouts), tuple(records)

    def _moved(self, number: int, stack: ExpertStack) -> NDArray[np.float64]:
        """How far a mean task's answer moves, by type, with one layer's experts exchanged. Nats."""
        model = with_layer(self._base.model, number, stack)
        tokens = [sum(len(known) for known in evidence.answers) / sum(map(len, evidence.batches)) for evidence in self._evidence]
        moved = [max(evidence.divergence(model), 0.0) * each for evidence, each in zip(self._evidence, tokens, strict=True)]
        return np.array(moved)


class _TypedErrors:
    """Σ gate² ‖f(x) - f̂(x)‖² of one layer over a mean task's tokens: by task type, and by the expert that the router chose."""

    def __init__(self, evidence: Evidence, parts: Sequence[LayerEvidence], num_examples: Sequence[int]) -> None:
        self._rule = evidence.rule
        top_k = parts[0].chosen.shape[1]
        self._stack = in_float32(parts[0].stack)
        self._inputs = torch.cat([part.inputs for part in parts]).repeat_interleave(top_k, 0)
        self._chosen = torch.cat([part.chosen for part in parts]).flatten()
        per_task = [part.gates.square() / count for part, count in zip(parts, num_examples, strict=True)]
        self._weights = torch.cat(per_task).flatten().double()
        labels = torch.cat([torch.full((part.chosen.numel(),), n) for n, part in enumerate(parts)])
        self._size = (len(parts), parts[0].num_experts)
        self._cells = labels * parts[0].num_experts + self._chosen
        with torch.no_grad():
            self._exact = apply_experts(self._inputs, self._chosen, self._stack.weights, self._rule)

    def of(self, held: PackedWeights | None) -> NDArray[np.float64]:
        """(num_types, num_experts): of experts held so, one a row; of nothing where none are."""
        with torch.no_grad():
            made = torch.zeros_like(self._exact) if held is None else apply_experts(self._inputs, self._chosen, held, self._rule)
        return self._summed(made)

    def sent(self) -> NDArray[np.float64]:
        """(num_types, num_experts, num_experts): tokens of the first answered by the second."""
        found = []
        for host in range(self._size[1]):
            with torch.no_grad():
                found.append(apply_experts(self._inputs, torch.full_like(self._chosen, host), self._stack.weights, self._rule))
        return np.stack([self._summed(made) for made in found], 2)

    def _summed(self, made: Tensor) -> NDArray[np.float64]:
        missed = (made - self._exact).square().sum(1).double() * self._weights
        summed: NDArray[np.float64] = torch.bincount(self._cells, missed, minlength=self._size[0] * self._size[1]).view(self._size).numpy()
        return summed


def _joined(parts: Sequence[LayerEvidence]) -> LayerEvidence:
    """Tokens of all task types as one."""
    joined = [torch.cat([getattr(part, name) for part in parts]) for name in ("inputs", "chosen", "gates", "logits")]
    return LayerEvidence(parts[0].stack, *joined)


def _table_id(base: BaseModel, examples: Mapping[str, Sequence[Example]], forms: Sequence[ExpertForm]) -> str:
    told = [FORMAT, base.base_id, base.dtype, [(f.bits, f.units, f.rank) for f in forms]]
    told += [[t, [(one.prompt, one.target) for one in examples[t]]] for t in sorted(examples)]
    return blake3.blake3(json.dumps(told, separators=(",", ":")).encode()).hexdigest(length=8)


def _written(table: FormTable) -> bytes:
    tensors = {"errors": torch.from_numpy(table.costs.errors), "sent": torch.from_numpy(table.costs.sent)}
    for number, (layouts, records) in enumerate(zip(table.layouts, table.records, strict=True)):
        tensors |= {f"{number}.{layout.name}": held for layout, held in zip(layouts, records, strict=True)}
    told = {"types": table.costs.task_types, "layouts": [[layout.name for layout in layouts] for layouts in table.layouts]}
    tensors["told"] = torch.from_numpy(np.frombuffer(json.dumps(told).encode(), dtype=np.uint8).copy())
    return bytes(save(tensors))


def _read(path: Path, base: BaseModel, forms: Sequence[ExpertForm], sizes: NDArray[np.int64]) -> FormTable | None:
    """None where the file is absent or not what it should be."""
    try:
        data = path.read_bytes()
        if header_problem(data[: 8 + _MAX_HEADER_BYTES], len(data), _MAX_HEADER_BYTES) is not None:
            return None
        tensors = load(data)
        told = json.loads(tensors["told"].numpy().tobytes())
        layouts = tuple(tuple(RecordLayout.parse(name) for name in names) for names in told["layouts"])
        records = tuple(tuple(tensors[f"{number}.{layout.name}"] for layout in row) for number, row in enumerate(layouts))
        errors, sent = tensors["errors"].numpy(), tensors["sent"].numpy()
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    if errors.shape[1] != len(base.model.experts) or errors.shape[3] != len(forms):
        return None
    return FormTable(FormErrors(base.base_id, tuple(told["types"]), tuple(forms), errors, sent, sizes), layouts, records)
