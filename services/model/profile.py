"""What merging does to a base model: the table of task types merged for and scored on, its rivals at equal bytes, and service times.

Everything is scored on items that calibration and recovery never saw. Values only; drawing them is not done here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from services.core.merging.recipes import PAPER
from services.core.merging.values import Frequencies
from services.model.build import Builder, BuildOptions
from services.model.calibration import Measured, answer_limit, measure
from services.model.families.base import MoeModel
from services.model.manifest import ModelManifest
from services.model.memory import budget_for
from services.model.quantise import bits_for_budget, bits_per_weight, quantised, quantised_bytes, zeroed
from services.tasks.scoring import SCORERS
from services.tasks.values import TaskSet

CURVE_BITS = (8, 7, 6, 5, 4, 3, 2, 1)
TIMED_BATCH_SIZES = (1, 2, 4, 8, 16, 32)
_TIMED_STEPS = 12

Quality = Mapping[str, float]
Tell = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class MergedRow:
    """A model merged for one task type, or for the uniform mix."""

    version: str
    experts_kept: int
    model_bytes: int
    build_s: float
    recovery_s: float
    quality: Quality
    quality_without_recovery: Quality
    frequencies: Mapping[str, Frequencies]  # by task type, counted while this model answered


@dataclass(frozen=True, slots=True)
class QuantisedRow:
    """The unmerged model with its experts at few bits."""

    bits: int
    bits_per_weight: float
    model_bytes: int
    quality: Quality


@dataclass(frozen=True, slots=True)
class ServiceTimes:
    """Measured on this machine: seconds to read one prompt and seconds of one step, by batch size."""

    prefill_s: Mapping[int, float]
    step_s: Mapping[int, float]


@dataclass(frozen=True, slots=True)
class ProfileReport:
    base_model: str
    dtype: str
    task_types: tuple[str, ...]
    num_items: Mapping[str, int]
    share: float
    budget_bytes: int
    full_bytes: int
    bits_per_expert_weight: float  # of the merged rows, over the original experts
    full: Quality
    full_frequencies: Mapping[str, Frequencies]
    zero_experts: Quality
    merged: Mapping[str, MergedRow]
    uniform: MergedRow
    same_bytes: QuantisedRow | None  # none where one bit does not fit
    quantised: tuple[QuantisedRow, ...]
    service_times: ServiceTimes


def share_bytes(builder: Builder, share: float) -> int:
    """The budget that holds this share of all experts, and everything else."""
    budget = budget_for(builder.base.model, 0)
    experts = sum(layer.num_experts * each for layer, each in zip(builder.base.model.shape.layers, budget.expert_bytes, strict=True))
    return budget.non_expert_bytes + round(experts * share)


def profile(
    builder: Builder,
    scored: TaskSet,
    share: float = 0.25,
    options: BuildOptions | None = None,
    items_per_type: int | None = None,
    curve_bits: Sequence[int] = CURVE_BITS,
    tell: Tell | None = None,
) -> ProfileReport:
    """Build one model a task type and one for the uniform mix, and score them beside their rivals on `scored`."""
    base, options = builder.base, options or BuildOptions(PAPER.method, PAPER.allocation)
    num_merged = (len(scored.task_types) + 1) * (2 if options.recovery_steps > 0 else 1)
    run = _Run(builder, scored, items_per_type, tell, 2 + num_merged + len(curve_bits) + 1)
    budget_bytes = share_bytes(builder, share)
    full = run.scored("full model", base.model)
    zero = run.scored("zero experts", zeroed(base.model))
    merged = {t: run.merged(t, {t: 1.0}, budget_bytes, options) for t in scored.task_types}
    uniform = run.merged("uniform mix", {t: 1 / len(scored.task_types) for t in scored.task_types}, budget_bytes, options)
    curve = tuple(run.quantised(bits) for bits in curve_bits)
    bits = bits_for_budget(base.model, budget_bytes)
    same = next((row for row in curve if row.bits == bits), None)
    if same is None and bits is not None:
        same = run.quantised(bits)
    return ProfileReport(
        base_model=base.base_id,
        dtype=base.dtype,
        task_types=scored.task_types,
        num_items=run.num_items,
        share=share,
        budget_bytes=budget_bytes,
        full_bytes=base.full_bytes,
        bits_per_expert_weight=_bits_per_expert_weight(base.model, budget_bytes),
        full=full.quality,
        full_frequencies=full.frequencies,
        zero_experts=zero.quality,
        merged=merged,
        uniform=uniform,
        same_bytes=same,
        quantised=curve,
        service_times=service_times(base.model, run.prompts),
    )


def service_times(model: MoeModel, prompts: Sequence[Sequence[int]], batch_sizes: Sequence[int] = TIMED_BATCH_SIZES) -> ServiceTimes:
    """Medians over a few steps after a warm-up."""
    prefill_s, step_s = {}, {}
    for size in batch_sizes:
        rows = [prompts[index % len(prompts)] for index in range(size)]
        slots = list(range(size))
        cache = model.new_cache(size)
        reading = [_timed(partial(model.prefill, cache, slots, rows)) for _ in range(4)]
        steps = [_timed(partial(model.step, cache, slots)) for _ in range(_TIMED_STEPS)]
        prefill_s[size], step_s[size] = float(np.median(reading[1:])), float(np.median(steps[1:]))
    return ServiceTimes(prefill_s, step_s)


class _Run:
    """One profiling run: the scored items, and progress through the rows."""

    def __init__(self, builder: Builder, scored: TaskSet, items_per_type: int | None, tell: Tell | None, num_rows: int) -> None:
        self._builder = builder
        self._items = {t: scored.of_type(t)[:items_per_type] for t in scored.task_types}
        self._scorers = {t: SCORERS[name] for t, name in scored.scorers.items()}
        self._max_tokens = answer_limit(builder.base.tokenizer, self._items)
        self._tell = tell
        self._num_rows = num_rows
        self._num_done = 0
        self.num_items = {t: len(items) for t, items in self._items.items()}
        self.prompts = [builder.base.tokenizer.encode(items[0].prompt) for items in self._items.values()]

    def scored(self, name: str, model: MoeModel) -> Measured:
        if self._tell is not None:
            self._tell(name, self._num_done / self._num_rows)
        self._num_done += 1
        return measure(model, self._builder.base.tokenizer, self._items, self._scorers, self._max_tokens)

    def merged(self, name: str, mix: Mapping[str, float], budget_bytes: int, options: BuildOptions) -> MergedRow:
        manifest = self._builder.build(mix, budget_bytes, options)
        measured = self.scored(f"merged for {name}", self._builder.model(manifest).model)
        without = measured.quality
        if options.recovery_steps > 0:
            plain = self._builder.unrecovered(mix, budget_bytes, options)
            without = self.scored(f"merged for {name}, no recovery", plain).quality
        return MergedRow(
            manifest.version,
            manifest.experts_kept,
            manifest.model_bytes,
            _build_s(manifest),
            manifest.durations_s.get("recover", 0.0),
            measured.quality,
            without,
            measured.frequencies,
        )

    def quantised(self, bits: int) -> QuantisedRow:
        model = self._builder.base.model
        measured = self.scored(f"unmerged, {bits} bits", quantised(model, bits))
        return QuantisedRow(bits, bits_per_weight(bits), quantised_bytes(model, bits), measured.quality)


def _build_s(manifest: ModelManifest) -> float:
    """Seconds of the build, the once-only preparation left out."""
    return sum(seconds for phase, seconds in manifest.durations_s.items() if phase != "prepare")


def _bits_per_expert_weight(model: MoeModel, budget_bytes: int) -> float:
    num_weights = sum(layer.num_experts * layer.expert_params for layer in model.shape.layers)
    return (budget_bytes - budget_for(model, 0).non_expert_bytes) * 8 / num_weights


def _timed(call: Callable[[], object]) -> float:
    start_at_s = time.perf_counter()
    call()
    return time.perf_counter() - start_at_s
