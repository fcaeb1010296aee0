"""QoS-Quant's server: experts in 4 or 16 bits, the rest of the model in 16 (Imani, Amirany, El-Ghazawi, ICRC 2024; arXiv 2407.14417).

Which experts are 4-bit is random in the paper (training balances their load); by usage, the least used first, is our own improvement.
A task preferring quality has alpha of 0.5 or more; a server follows the majority of its last tasks, since following each would thrash.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from services.core.runtimes import Counts, Effect, share_of_tokens, touched

Preference = Literal["throughput", "quality"]
QUALITY_ALPHA = 0.5


@dataclass(frozen=True, slots=True)
class Sizes:
    num_experts: int
    expert_16_bytes: float
    expert_4_bytes: float
    non_expert_bytes: float


@dataclass(frozen=True, slots=True, eq=False)
class PrecisionPlan:
    """The paper's table: precision and place of every expert."""

    four_bit: NDArray[np.bool_]  # (num_experts,)
    resident: NDArray[np.bool_]  # (num_experts,); the others are in host memory


def preference(alphas: Collection[float]) -> Preference:
    """Of a server whose last tasks had these alphas."""
    return "quality" if 2 * sum(alpha >= QUALITY_ALPHA for alpha in alphas) > len(alphas) else "throughput"


def num_16_bit(memory_bytes: float, sizes: Sizes) -> int:
    """Most experts in 16 bits with all of them resident: N16 = ⌊(memory - non-experts - N · E4) / (E16 - E4)⌋, the paper's 3 · E4."""
    spare = memory_bytes - sizes.non_expert_bytes - sizes.num_experts * sizes.expert_4_bytes
    return min(max(int(spare // (sizes.expert_16_bytes - sizes.expert_4_bytes)), 0), sizes.num_experts)


def plan(memory_bytes: float, sizes: Sizes, wanted: Preference, order: Sequence[int], num_4_bit: int | None = None) -> PrecisionPlan:
    """`order`: experts as they become 4-bit, first first (a permutation drawn at random, or `by_usage`).

    Throughput: as many residents as can be. Quality: `num_4_bit` is the user's choice (without one, 0), 4-bit experts become
    resident first, and what memory is left over holds 16-bit ones. One expert's room is kept for swapping unless all are resident.
    """
    n = sizes.num_experts
    if wanted == "throughput":
        num_4_bit = n - num_16_bit(memory_bytes, sizes)
    four_bit = np.zeros(n, dtype=np.bool_)
    four_bit[list(order[: num_4_bit or 0])] = True
    left = memory_bytes - sizes.non_expert_bytes
    needed = np.where(four_bit, sizes.expert_4_bytes, sizes.expert_16_bytes)
    if needed.sum() > left:
        left -= float(needed.max())
    resident = np.zeros(n, dtype=np.bool_)
    for expert in sorted(range(n), key=lambda e: (not four_bit[e], order.index(e))):
        if needed[expert] <= left:
            resident[expert] = True
            left -= float(needed[expert])
    return PrecisionPlan(four_bit, resident)


def by_usage(counts: Counts) -> tuple[int, ...]:
    """Least used first."""
    return tuple(int(e) for e in np.argsort(counts, kind="stable"))


def moved_bytes(before: PrecisionPlan, after: PrecisionPlan, sizes: Sizes) -> float:
    """What a reconfiguration copies to the device: experts that come in, or change their precision."""
    changed = after.resident & (~before.resident | (before.four_bit != after.four_bit))
    return float(np.where(after.four_bit[changed], sizes.expert_4_bytes, sizes.expert_16_bytes).sum())


def effect(counts: Counts, held: PrecisionPlan, sizes: Sizes, bytes_per_s: float, quality: float, loss: float = 0.02) -> Effect:
    """Misses are copied from host memory; quality falls by `loss` (κ) times the share of tokens that hit a 4-bit expert."""
    size = np.where(held.four_bit, sizes.expert_4_bytes, sizes.expert_16_bytes)
    missed_bytes = float((touched(counts) * size)[~held.resident].sum())
    return Effect(missed_bytes / bytes_per_s, quality - loss * share_of_tokens(counts, held.four_bit))
