"""A model of stated distributions: for theory runs, and where nothing was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from loadgen.simulator.errors import ScenarioError
from loadgen.simulator.model import Lengths, PerTask, SimulatedVersion, alike, mix_name
from services.core.offload.values import StepTimes
from services.core.runtimes.mixed_precision import Sizes

DISTRIBUTIONS = ("constant", "geometric", "uniform")
STATED_SEED = 20261122  # a stated model is the same in every run


@dataclass(frozen=True, slots=True)
class StatedOptions:
    """`whole_share`: the share of all experts that keeps one task type whole. A version keeps its types whole in the order of their
    shares until memory is full, the last one in part; a type kept in part x scores other_quality + x · (own - other)."""

    task_types: tuple[str, ...]
    own_quality: float = 0.9
    other_quality: float = 0.1
    whole_share: float = 0.2
    quantised_quality: float = 0.5  # of every type, on the unmerged model at few bits
    num_layers: int = 12
    num_experts: int = 32
    concentration: float = 0.1  # of the Dirichlet distribution of each type's frequencies: low is specialised
    prompt_tokens: int = 20
    prompt_bytes: int = 100
    output_tokens: float = 10.0  # mean
    output_distribution: str = "geometric"
    step_base_s: float = 0.01
    step_row_s: float = 0.0
    prefill_base_s: float = 0.0
    prefill_token_s: float = 0.0
    full_bytes: int = 1_000_000_000
    build_s: float = 1.0

    def __post_init__(self) -> None:
        if self.output_distribution not in DISTRIBUTIONS:
            raise ScenarioError(f"output_distribution is {self.output_distribution!r}: choose one of {', '.join(DISTRIBUTIONS)}")
        if not self.task_types:
            raise ScenarioError("task_types is empty: name at least one")
        if not 0.0 <= self.quantised_quality <= self.own_quality:
            raise ScenarioError(f"quantised_quality is {self.quantised_quality}: a score from 0 to own_quality")
        if not 0.0 <= self.other_quality <= self.own_quality <= 1.0:
            raise ScenarioError("own_quality and other_quality are scores: 0 ≤ other_quality ≤ own_quality ≤ 1")
        if self.output_tokens < 1.0 or self.whole_share <= 0.0:
            raise ScenarioError("output_tokens is at least 1, whole_share above 0")


class StatedModel:
    def __init__(self, options: StatedOptions) -> None:
        self._options = options
        rng = np.random.default_rng(STATED_SEED)
        shape = (options.num_layers, options.num_experts)
        tokens = options.prompt_tokens + options.output_tokens
        self._profiles: dict[str, PerTask] = {
            t: tokens * rng.dirichlet(np.full(shape[1], options.concentration), size=shape[0]) for t in self.task_types
        }
        self._made: dict[tuple[str, float], SimulatedVersion] = {}

    @property
    def task_types(self) -> tuple[str, ...]:
        return tuple(sorted(self._options.task_types))

    @property
    def step_times(self) -> StepTimes:
        options = self._options
        return StepTimes(options.step_base_s, options.step_row_s, options.prefill_base_s, options.prefill_token_s)

    def version(self, mix: Mapping[str, float], memory_share: float) -> SimulatedVersion:
        key = (mix_name(mix), round(memory_share, 6))
        if key not in self._made:
            quality = self._quality(mix, memory_share)
            size = round(self._options.full_bytes * memory_share)
            name = f"{key[0]}@{memory_share:.0%}"
            self._made[key] = SimulatedVersion(name, dict(mix), quality, quality, self._profiles, size, self._options.build_s)
        return self._made[key]

    def quantised(self, memory_share: float) -> SimulatedVersion:
        if memory_share >= 1.0:
            return self.version(alike(self.task_types), 1.0)
        quality = dict.fromkeys(self.task_types, self._options.quantised_quality)
        size = round(self._options.full_bytes * memory_share)
        return SimulatedVersion(f"unmerged@{memory_share:.0%}", alike(self.task_types), quality, quality, self._profiles, size, 0.0)

    @property
    def sizes(self) -> Sizes:
        """All bytes are the experts'; 4 bits are 5 with their scales."""
        num_experts = self._options.num_layers * self._options.num_experts
        expert_bytes = self._options.full_bytes / num_experts
        return Sizes(num_experts, expert_bytes, expert_bytes * 5 / 16, 0.0)

    @property
    def four_bit_quality(self) -> Mapping[str, float]:
        return dict.fromkeys(self.task_types, self._options.quantised_quality)

    def lengths(self, task_type: str, num_tasks: int, rng: np.random.Generator) -> Lengths:
        options = self._options
        match options.output_distribution:
            case "constant":
                output = np.full(num_tasks, round(options.output_tokens), dtype=np.int64)
            case "uniform":  # from 1 to twice the mean
                output = rng.integers(1, round(2 * options.output_tokens), size=num_tasks)
            case _:
                output = rng.geometric(1.0 / options.output_tokens, size=num_tasks)
        prompt = np.full(num_tasks, max(options.prompt_tokens, 1), dtype=np.int64)
        return Lengths(np.full(num_tasks, options.prompt_bytes, dtype=np.int64), prompt, output.astype(np.int64))

    def mean_output_tokens(self) -> dict[str, float]:
        return dict.fromkeys(self.task_types, self._options.output_tokens)

    def _quality(self, mix: Mapping[str, float], memory_share: float) -> dict[str, float]:
        options = self._options
        fits = len(self.task_types) if memory_share >= 1.0 else memory_share / options.whole_share
        ranked = sorted(self.task_types, key=lambda t: (-mix.get(t, 0.0), t))
        wanted = [t for t in ranked if mix.get(t, 0.0) > 0.0 or memory_share >= 1.0]
        kept = {t: min(max(fits - rank, 0.0), 1.0) for rank, t in enumerate(wanted)}
        return {t: options.other_quality + kept.get(t, 0.0) * (options.own_quality - options.other_quality) for t in self.task_types}
