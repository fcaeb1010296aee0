"""What an edge's memory holds of a mix of task types: fitted experts, the product's merge, the unmerged model quantised to equal bytes.

Scored on items that nothing was calibrated on, for mixes that each task type leads in turn; each fitted version also for the mix that
another type leads, which is what an update saves. Step times of all are CPU time on one thread, in the same rounds; medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from loadgen.demo_plan import led_by
from services.core.merging.recipes import FITTED, PRODUCT
from services.model.build import Builder, BuildOptions
from services.model.calibration import measure as score_of
from services.model.compressions import compression
from services.model.compressions.compensated import BITS, needed_bytes
from services.model.evidence import gather
from services.model.families.base import MoeModel
from services.model.memory import non_expert_bytes
from services.model.quantise import bits_for_budget, quantised
from services.model.recovery import examples
from services.tasks.scoring import SCORERS
from services.tasks.values import TaskSet

STEPS_A_ROUND = 4
UNMERGED_EXAMPLES = 256  # of each task type, that compensated experts are fitted to
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class StepTime:
    """CPU seconds of one call with so many tasks in the batch."""

    batch: int
    prefill_s: float
    step_s: float


@dataclass(frozen=True, slots=True)
class MemoryFigures:
    """One memory size. Qualities are shares of a mix times scores, mean over the mixes that each task type leads."""

    expert_share: float
    budget_bytes: int
    bits_per_weight: float  # of room for each original expert weight
    fitted: float
    fitted_elsewhere: float  # for the mix that the next task type leads: what a version is worth after a drift
    product: float
    unmerged_bits: int | None  # None: not even one bit of every expert fits
    unmerged: float | None
    compensated_bits: int | None
    compensated: float | None
    build_s: float  # of a fitted version, once the base model is prepared
    fitted_times: tuple[StepTime, ...]
    product_times: tuple[StepTime, ...]


@dataclass(frozen=True, slots=True)
class FittedFigures:
    base_model: str
    dtype: str
    full: float
    full_times: tuple[StepTime, ...]
    memories: tuple[MemoryFigures, ...]


class _Bench:
    def __init__(self, builder: Builder, scored: TaskSet, batches: Sequence[int], rounds: int) -> None:
        self.builder, self.base = builder, builder.base
        self._items = {task_type: scored.of_type(task_type) for task_type in scored.task_types}
        self._scorers = {task_type: SCORERS[name] for task_type, name in scored.scorers.items()}
        self._batches, self._rounds = batches, rounds
        self.mixes = [led_by([task_type], scored.task_types) for task_type in scored.task_types]
        self._prompts = [self.base.tokenizer.encode(item.prompt) for item in scored.items]

    def quality(self, model: MoeModel) -> Mapping[str, float]:
        return score_of(model, self.base.tokenizer, self._items, self._scorers, self.builder.calibration.max_answer_tokens).quality

    def times(self, models: Sequence[MoeModel]) -> list[tuple[StepTime, ...]]:
        """By model, the same prompts for all of them in each round."""
        found: list[list[StepTime]] = [[] for _ in models]
        rng = np.random.default_rng(0)
        for batch in self._batches:
            taken: list[tuple[list[float], list[float]]] = [([], []) for _ in models]
            for _ in range(self._rounds):
                prompts = [self._prompts[place] for place in rng.integers(0, len(self._prompts), batch)]
                for model, (prefills, steps) in zip(models, taken, strict=True):
                    prefill_s, step_s = _timed(model, prompts)
                    prefills.append(prefill_s)
                    steps.append(step_s)
            for times, (prefills, steps) in zip(found, taken, strict=True):
                times.append(StepTime(batch, statistics.median(prefills), statistics.median(steps)))
        return [tuple(times) for times in found]


def measure(
    builder: Builder, scored: TaskSet, expert_shares: Sequence[float], batches: Sequence[int], rounds: int, tell: Tell
) -> FittedFigures:
    """`expert_shares`: memory for everything that is no expert and so large a share of the experts, as in an edges file."""
    bench = _Bench(builder, scored, batches, rounds)
    tell("the table of forms, once per base model")
    builder.fitted.prepare()
    tell("the unmerged model at each width")
    unmerged = _Unmerged(bench)
    full = bench.quality(builder.base.model)
    memories = []
    for share in expert_shares:
        tell(f"memory for {share:.0%} of the experts")
        memories.append(_memory(bench, share, unmerged))
    return FittedFigures(
        builder.base.base_id, builder.base.dtype, _for_mixes(bench.mixes, full), bench.times([builder.base.model])[0], tuple(memories)
    )


class _Unmerged:
    """The unmerged model at so many bits, rounded or compensated; each width is scored once."""

    def __init__(self, bench: _Bench) -> None:
        self._bench = bench
        base, calibration = bench.base, bench.builder
        shown = [one for t in sorted(calibration.scorers) for one in calibration.items(t)[:UNMERGED_EXAMPLES]]
        self._evidence = gather(base, examples(base.tokenizer, base.model.shape, shown))
        self._rest_bytes = non_expert_bytes(base.model)
        self._scores: dict[tuple[str, int], float] = {}

    def rounded(self, budget_bytes: int) -> tuple[int | None, float | None]:
        bits = bits_for_budget(self._bench.base.model, budget_bytes)
        return bits, None if bits is None else self._scored("rounded", bits, lambda: quantised(self._bench.base.model, bits))

    def compensated(self, budget_bytes: int) -> tuple[int | None, float | None]:
        room_bytes = budget_bytes - self._rest_bytes
        bits = next((bits for bits in BITS if needed_bytes(self._evidence, bits) <= room_bytes), None)
        return bits, None if bits is None else self._scored("compensated", bits, lambda: self._compensated(room_bytes, bits))

    def _compensated(self, room_bytes: int, bits: int) -> MoeModel:
        return self._bench.base.model.with_experts(compression("compensated")(self._evidence, room_bytes, bits).stacks)

    def _scored(self, kind: str, bits: int, make: Callable[[], MoeModel]) -> float:
        if (kind, bits) not in self._scores:
            self._scores[kind, bits] = _for_mixes(self._bench.mixes, self._bench.quality(make()))
        return self._scores[kind, bits]


def _memory(bench: _Bench, share: float, unmerged: _Unmerged) -> MemoryFigures:
    builder = bench.builder
    rest_bytes = non_expert_bytes(builder.base.model)
    room_bytes = int(share * (builder.base.full_bytes - rest_bytes))
    budget_bytes = rest_bytes + room_bytes
    weights = sum(layer.num_experts * layer.expert_params for layer in builder.base.model.shape.layers)
    began_at_s = time.perf_counter()
    fitted = [builder.build(mix, budget_bytes, BuildOptions(method=FITTED)) for mix in bench.mixes]
    build_s = (time.perf_counter() - began_at_s) / len(fitted)
    product = [builder.build(mix, budget_bytes, BuildOptions(PRODUCT.method, PRODUCT.allocation, PRODUCT.grouping)) for mix in bench.mixes]
    models = [builder.model(manifest).model for manifest in fitted]
    merged = [builder.model(manifest).model for manifest in product]
    scores = [bench.quality(model) for model in models]
    unmerged_bits, unmerged_score = unmerged.rounded(budget_bytes)
    compensated_bits, compensated_score = unmerged.compensated(budget_bytes)
    times = bench.times([models[0], merged[0]])
    return MemoryFigures(
        share,
        budget_bytes,
        8 * room_bytes / weights,
        _mean(_for_mix(mix, quality) for mix, quality in zip(bench.mixes, scores, strict=True)),
        _mean(_for_mix(mix, quality) for mix, quality in zip(bench.mixes, [*scores[1:], scores[0]], strict=True)),
        _mean(_for_mix(mix, bench.quality(model)) for mix, model in zip(bench.mixes, merged, strict=True)),
        unmerged_bits,
        unmerged_score,
        compensated_bits,
        compensated_score,
        build_s,
        times[0],
        times[1],
    )


def _timed(model: MoeModel, prompts: Sequence[Sequence[int]]) -> tuple[float, float]:
    """CPU seconds of this thread, which torch is to compute on alone."""
    cache, slots = model.new_cache(len(prompts)), list(range(len(prompts)))
    began_at_s = time.thread_time()
    model.prefill(cache, slots, prompts)
    read_at_s = time.thread_time()
    for _ in range(STEPS_A_ROUND):
        model.step(cache, slots)
    return read_at_s - began_at_s, (time.thread_time() - read_at_s) / STEPS_A_ROUND


def _for_mix(mix: Mapping[str, float], quality: Mapping[str, float]) -> float:
    return sum(share * quality[task_type] for task_type, share in mix.items())


def _for_mixes(mixes: Sequence[Mapping[str, float]], quality: Mapping[str, float]) -> float:
    return _mean(_for_mix(mix, quality) for mix in mixes)


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)
