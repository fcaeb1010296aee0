"""What a server holds where a published system does not hold one merged model, and what that costs a task: one file a system.

Pure arithmetic on expert sizes and activation counts; no weights are touched. All compare at equal bytes: memory in, effects out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.float64]  # (num_experts,) expected routed tokens of one task, experts of all layers in one row


@dataclass(frozen=True, slots=True)
class Effect:
    """On one task: seconds beyond computing it, and the quality that its answer is expected to have."""

    extra_s: float
    quality: float


def touched(counts: Counts) -> Counts:
    """Probability that a task routes at least one token to each expert, tokens taken as independent."""
    probability: Counts = -np.expm1(-counts)
    return probability


def share_of_tokens(counts: Counts, experts: NDArray[np.bool_]) -> float:
    """Of a task's routed tokens, those that go to `experts`."""
    total = float(counts.sum())
    return float(counts[experts].sum()) / total if total > 0.0 else 0.0
