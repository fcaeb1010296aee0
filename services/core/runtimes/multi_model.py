"""Multi-MoE's server: several fine-tuned variants of one model share a device (Imani et al., ICML 2025; arXiv 2505.06481).

Experts are consolidated by position: where variants are most alike, one of them, in turn, provides the expert for all. The non-expert
layers are those of one variant at a time and are swapped when a task wants another. A routed expert that is not resident is fetched,
and then it is the wanted variant's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from services.core.runtimes import Counts, Effect, share_of_tokens, touched

ABSENT = -1


@dataclass(frozen=True, slots=True, eq=False)
class Consolidation:
    """`owners`: of each expert position, the variant whose weights are resident there, or `ABSENT`."""

    owners: NDArray[np.int64]  # (num_experts,)


def distances(variants: Sequence[NDArray[np.float64]]) -> Counts:
    """L2 distance of the variants' weights by position, summed over pairs; each variant is (num_experts, num_weights)."""
    total: Counts = np.sum([np.linalg.norm(one - other, axis=1) for one, other in combinations(variants, 2)], axis=0, dtype=np.float64)
    return total


def consolidated(by_position: Counts, num_variants: int, room: int) -> Consolidation:
    """The `room` positions at which variants are most alike, each owned by the next variant in turn by rank."""
    owners = np.full(len(by_position), ABSENT, dtype=np.int64)
    for rank, position in enumerate(np.argsort(by_position, kind="stable")[: max(room, 0)]):
        owners[position] = rank % num_variants
    return Consolidation(owners)


def effect(
    counts: Counts,
    held: Consolidation,
    wanted: int,
    active: int,
    *,
    expert_bytes: float,
    non_expert_bytes: float,
    bytes_per_s: float,
    quality: float,
    loss: float = 0.1,
) -> Effect:
    """`quality` is the wanted variant's own; it falls by `loss` (β) times the share of tokens that another variant's experts serve."""
    missed = float(touched(counts)[held.owners == ABSENT].sum())
    swapped_bytes = non_expert_bytes if wanted != active else 0.0
    foreign = share_of_tokens(counts, (held.owners != ABSENT) & (held.owners != wanted))
    return Effect((missed * expert_bytes + swapped_bytes) / bytes_per_s, quality * (1.0 - loss * foreign))
