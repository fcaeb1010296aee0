"""The whole benchmark: float32 for equality of tokens, then bfloat16 for speed, ours and transformers in turn in every round."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from loadgen.bench import machine
from loadgen.bench.sizes import Sizes
from loadgen.bench.worker import ours, rival
from loadgen.bench.worker.figures import FourBitFigures, LimitFigures, MergedFigures, ProcessorFigures, StaticFigures, WorkerFigures
from loadgen.bench.worker.lengths import BenchTask, Lengths
from loadgen.bench.worker.limit import CallRecorder, Machine, limit_of, routing_entropy
from loadgen.bench.worker.models import FourBits, four_bits, merged, random_model, transformers_model
from services.model.families.base import ModelShape, MoeModel
from services.model.generation import BatchEngine
from services.model.memory import unique_bytes
from services.worker.emulation import Device
from services.worker.step_times import StepTimesFit
from services.worker.warm_up import PROMPT_TOKENS, warm_up

Tell = Callable[[str], None]

GPU_FIRST_RUNS = 6  # until hardly a shape comes that was not recorded before


@dataclass(frozen=True, slots=True)
class Options:
    """`num_checked` tasks are answered in float32 too. All that is timed answers all tasks."""

    num_tasks: int = 64
    num_concurrent: int = 16
    num_checked: int = 24
    static_sizes: tuple[int, ...] = (2, 4, 8, 16)
    rounds: int = 3
    kept_share: float = 0.25
    seed: int = 0
    device: torch.device = machine.CPU


@dataclass(frozen=True, slots=True)
class Equality:
    num_tasks: int
    num_equal: int
    num_overflowed: int  # tokens that transformers sent to no expert


def measure(sizes: Sizes, lengths: Lengths, options: Options, tell: Tell) -> WorkerFigures:
    tasks = lengths.draw(options.num_tasks, sizes.vocab_size, options.seed)
    tell("float32: transformers one task at a time, ours batched")
    equality = _equality(sizes, tasks[: options.num_checked], options)
    gc.collect()
    tell("machine: memory bandwidth and matrix rate")
    found = Machine(machine.bandwidth_bytes_per_s(options.device), machine.matrix_flops_per_s(torch.bfloat16, options.device))
    tell("bfloat16: making the model")
    plain = random_model(sizes, torch.bfloat16, options.seed, options.device)
    tell("bfloat16: experts to 4 bits")
    in_four_bits = four_bits(plain)
    rival_model, merged_model = transformers_model(sizes, plain), merged(plain, options.kept_share).blocked()
    contest = _Contest(plain.blocked(), rival_model, merged_model, in_four_bits, tasks, options, tell)
    contest.run()
    return contest.figures(sizes, lengths, equality, found)


def _equality(sizes: Sizes, tasks: Sequence[BenchTask], options: Options) -> Equality:
    """transformers first, on the plain matrices: those of ours replace them, so that both are never in memory."""
    model = random_model(sizes, torch.float32, options.seed, options.device)
    known, num_overflowed = _known_tokens(transformers_model(sizes, model), tasks)
    gc.collect()
    held = model.experts
    assert isinstance(held, list)
    for number, stack in enumerate(held):
        held[number] = stack.blocked()
    del stack
    made = ours.run(ours.new_engine(model.blocked(), options.num_concurrent), tasks, options.num_concurrent).tokens
    return Equality(len(tasks), sum(made[task] == tokens for task, tokens in known.items()), num_overflowed)


def _known_tokens(model: Any, tasks: Sequence[BenchTask]) -> tuple[dict[str, list[int]], int]:
    overflow = rival.Overflow(model)
    known: dict[str, list[int]] = {}
    for batch in rival.batches(tasks, 1):
        known |= rival.generate(model, batch)
    return known, overflow.num_tokens


@dataclass(slots=True)
class _Ours:
    """One model in the worker's engine, and its timed runs. Reading is due as the worker measures it before it serves."""

    model: MoeModel
    engine: BatchEngine
    prefill_base_s: float
    runs: list[ours.OurRun] = field(default_factory=list)

    @classmethod
    def measured(cls, model: MoeModel, num_concurrent: int) -> _Ours:
        fit = StepTimesFit()
        warm_up(model, num_concurrent, max(PROMPT_TOKENS), Device(), fit)
        return cls(model, ours.new_engine(model, num_concurrent), fit.prefill.line()[0])

    @property
    def tokens_per_s(self) -> float:
        return _median(self.runs)

    @property
    def typical(self) -> ours.OurRun:
        """The run of median speed, whose latencies are told."""
        return sorted(self.runs, key=lambda run: run.tokens_per_s)[len(self.runs) // 2]

    def run(self, tasks: Sequence[BenchTask], num_concurrent: int) -> None:
        self.runs.append(self.run_once(tasks, num_concurrent))

    def run_once(self, tasks: Sequence[BenchTask], num_concurrent: int) -> ours.OurRun:
        return ours.run(self.engine, tasks, num_concurrent, self.prefill_base_s)


class _Contest:
    """All contestants hold their model; every round runs each once."""

    def __init__(
        self,
        model: MoeModel,
        rival_model: Any,
        merged_model: MoeModel,
        in_four_bits: FourBits,
        tasks: Sequence[BenchTask],
        options: Options,
        tell: Tell,
    ) -> None:
        self._rival, self._rounded = rival_model, in_four_bits
        self._tasks, self._options, self._tell = tasks, options, tell
        models = (model, merged_model, model.with_experts(in_four_bits.experts))
        self._ours, self._merged, self._four_bits = (_Ours.measured(each, options.num_concurrent) for each in models)
        self._static: dict[tuple[str, int], list[rival.RivalRun]] = {}
        self._oracle: list[rival.RivalRun] = []
        self._alone: list[rival.RivalRun] = []
        self._recorders: list[CallRecorder] = []

    def run(self) -> None:
        """What is run first warms up and counts what is hit; then every static batch once, and the best of them in every round."""
        self._tell("bfloat16: first runs, not timed")
        most = self._options.num_concurrent
        ours.run(ours.new_engine(self._ours.model, most, self._new_recorder), self._tasks, most, self._ours.prefill_base_s)
        for each in (self._ours, self._merged, self._four_bits):
            is_recorded = self._options.device.type == "cuda" and each is not self._four_bits
            for _ in range(GPU_FIRST_RUNS if is_recorded else 1):
                each.run_once(self._tasks, most)
        rival.run(self._rival, self._tasks[:2], 2)
        for order in rival.ORDERS:
            for size in self._options.static_sizes:
                self._tell(f"transformers: {size} at a time, {order}")
                self._run_static(order, size)
        for number in range(self._options.rounds):
            self._tell(f"round {number + 1} of {self._options.rounds}")
            self._run_round()

    def figures(self, sizes: Sizes, lengths: Lengths, equality: Equality, found: Machine) -> WorkerFigures:
        best = self._best()
        run = self._ours.typical
        counts = self._recorders[0].take()
        limit = limit_of(self._ours.model, self._recorders[0].calls, found)
        best_runs = self._static[best]
        return WorkerFigures(
            machine=machine.describe(self._options.device),
            lengths=lengths.source,
            num_tasks=len(self._tasks),
            num_concurrent=self._options.num_concurrent,
            prompt_tokens=sum(len(task.prompt_ids) for task in self._tasks),
            output_tokens=run.num_tokens,
            params=sum(tensor.numel() for tensor in self._ours.model.parameters().values()),
            identical_tokens=equality.num_equal == equality.num_tasks,
            num_checked=equality.num_tasks,
            num_equal=equality.num_equal,
            num_overflowed=equality.num_overflowed,
            routing_entropy=routing_entropy(counts),
            tokens_per_s=self._ours.tokens_per_s,
            slowest=min(each.tokens_per_s for each in self._ours.runs),
            fastest=max(each.tokens_per_s for each in self._ours.runs),
            prefill_share=run.prefill_s / run.wall_s,
            num_steps=run.num_steps,
            num_prefills=run.num_prefills,
            first_token=ours.percentiles(run.first_token_s),
            between_tokens=ours.percentiles(run.between_tokens_s),
            completion=ours.percentiles(run.completion_s),
            static=tuple(StaticFigures(order, size, _median(runs)) for (order, size), runs in self._static.items()),
            best_static=StaticFigures(*best, _median(best_runs)),
            oracle_tokens_per_s=_median(self._oracle),
            static_completion=ours.percentiles(best_runs[-1].completion_s),
            one_at_a_time_tokens_per_s=_median(self._alone),
            processor=ProcessorFigures(_median_processor(self._ours.runs), _median_processor(best_runs), _median_processor(self._alone)),
            merged=MergedFigures(
                self._options.kept_share,
                self._merged.tokens_per_s,
                unique_bytes(self._merged.model),
                ours.percentiles(self._merged.typical.completion_s),
            ),
            four_bits=self._four_bit_figures(_median(best_runs)),
            limit=LimitFigures(
                found.bandwidth_bytes_per_s,
                found.matrix_flops_per_s,
                limit.weight_bytes,
                limit.flops,
                limit.prefill_s,
                limit.decode_s,
                limit.least_s / run.wall_s,
            ),
            weight_bytes=unique_bytes(self._ours.model),
            peak_rss_bytes=machine.peak_rss_bytes(),
            peak_device_bytes=machine.peak_device_bytes(self._options.device),
        )

    def _four_bit_figures(self, best_static_tokens_per_s: float) -> FourBitFigures:
        run, rate = self._four_bits.typical, self._four_bits.tokens_per_s
        return FourBitFigures(
            rate,
            rate / self._ours.tokens_per_s,
            rate / best_static_tokens_per_s,
            self._rounded.num_bytes,
            unique_bytes(self._four_bits.model),
            self._rounded.layer_difference,
            ours.percentiles(run.first_token_s),
            ours.percentiles(run.between_tokens_s),
            ours.percentiles(run.completion_s),
        )

    def _run_round(self) -> None:
        most = self._options.num_concurrent
        self._ours.run(self._tasks, most)
        self._run_static(*self._best())
        self._merged.run(self._tasks, most)
        self._four_bits.run(self._tasks, most)
        self._alone.append(rival.run(self._rival, self._tasks, 1))
        self._oracle.append(rival.run(self._rival, rival.BY_ANSWER(self._tasks), max(self._options.static_sizes)))

    def _run_static(self, order: str, size: int) -> None:
        made = rival.run(self._rival, rival.ORDERS[order](self._tasks), size)
        self._static.setdefault((order, size), []).append(made)

    def _best(self) -> tuple[str, int]:
        return max(self._static, key=lambda found: _median(self._static[found]))

    def _new_recorder(self, shape: ModelShape) -> CallRecorder:
        self._recorders.append(CallRecorder(shape))
        return self._recorders[-1]


def _median(runs: Sequence[ours.OurRun] | Sequence[rival.RivalRun]) -> float:
    return statistics.median(run.tokens_per_s for run in runs)


def _median_processor(runs: Sequence[ours.OurRun] | Sequence[rival.RivalRun]) -> float:
    return statistics.median(run.tokens_per_processor_s for run in runs)
