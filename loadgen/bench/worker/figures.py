"""The figures of `moedge bench worker`: values, and the ratios between them. All rates are medians of the rounds, in generated tokens/s."""

from __future__ import annotations

from dataclasses import dataclass

Percentiles = dict[str, float]


@dataclass(frozen=True, slots=True)
class StaticFigures:
    """transformers with batches of `size`, filled in this order."""

    order: str
    size: int
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class MergedFigures:
    kept_share: float
    tokens_per_s: float
    weight_bytes: int
    completion: Percentiles


@dataclass(frozen=True, slots=True)
class FourBitFigures:
    """The same model with its experts at 4 bits. Bytes are those held, laid out for products."""

    tokens_per_s: float
    ratio_bfloat16: float
    ratio_best_static_batch: float
    expert_bytes: int
    weight_bytes: int
    layer_difference: float  # the largest of any layer's output from that of its weights unpacked to float32, over the largest output
    first_token: Percentiles
    between_tokens: Percentiles
    completion: Percentiles


@dataclass(frozen=True, slots=True)
class LimitFigures:
    """What the machine does at most, what a run of ours asks of it, and the share of the run's time that this would take."""

    bandwidth_bytes_per_s: float
    matrix_flops_per_s: float
    weight_bytes: float
    flops: float
    prefill_s: float
    decode_s: float
    share_reached: float


@dataclass(frozen=True, slots=True)
class ProcessorFigures:
    """Tokens a second of processor time, in which other work on the machine counts less than by the clock. Waiting threads count."""

    tokens_per_s: float
    best_static_tokens_per_s: float
    one_at_a_time_tokens_per_s: float

    @property
    def ratio_best_static_batch(self) -> float:
        return self.tokens_per_s / self.best_static_tokens_per_s

    @property
    def ratio_one_at_a_time(self) -> float:
        return self.tokens_per_s / self.one_at_a_time_tokens_per_s


@dataclass(frozen=True, slots=True)
class WorkerFigures:
    machine: dict[str, object]
    lengths: str
    num_tasks: int
    num_concurrent: int
    prompt_tokens: int
    output_tokens: int
    params: int
    identical_tokens: bool  # of `num_checked` tasks in float32, `num_equal` gave the same tokens
    num_checked: int
    num_equal: int
    num_overflowed: int
    routing_entropy: float  # 1: even
    tokens_per_s: float
    slowest: float
    fastest: float
    prefill_share: float  # of the time
    num_steps: int
    num_prefills: int
    first_token: Percentiles
    between_tokens: Percentiles
    completion: Percentiles
    static: tuple[StaticFigures, ...]
    best_static: StaticFigures
    oracle_tokens_per_s: float  # the largest static batch, sorted by the length of the answers, which nobody knows beforehand
    static_completion: Percentiles  # from the start of its batch: what waited before is not in it
    one_at_a_time_tokens_per_s: float
    processor: ProcessorFigures
    merged: MergedFigures
    four_bits: FourBitFigures
    limit: LimitFigures
    weight_bytes: int
    peak_rss_bytes: int  # of the process: transformers, and float32, included
    peak_device_bytes: int  # likewise of a GPU's memory; 0 without one

    @property
    def ratio_best_static_batch(self) -> float:
        return self.tokens_per_s / self.best_static.tokens_per_s

    @property
    def ratio_oracle(self) -> float:
        return self.tokens_per_s / self.oracle_tokens_per_s

    @property
    def ratio_one_at_a_time(self) -> float:
        return self.tokens_per_s / self.one_at_a_time_tokens_per_s
