"""MoE-Load's server: a buffer of experts on the device, the rest in host memory (Huang et al., NeurIPS 2024; arXiv 2303.06182).

Evicts last in, first out: experts run in the order of their ids within a layer, so the least recently used is what the next pass needs
first. LRU and Belady's optimum (which knows the future) stand beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from services.core.runtimes import Counts, Effect, touched

Eviction = Literal["lifo", "lru", "belady"]
NEVER = 1 << 62


def num_misses(accesses: Sequence[int], room: int, eviction: Eviction) -> int:
    """Of experts used in this order, with an empty buffer that holds `room` of them."""
    if room < 1:
        return len(accesses)
    next_use = _next_uses(accesses) if eviction == "belady" else []
    held: dict[int, int] = {}  # expert -> when it is used next (belady); in the order in which they came in, or were last used (lru)
    misses = 0
    for at, expert in enumerate(accesses):
        if expert not in held:
            misses += 1
            if len(held) >= room:
                del held[_evicted(held, eviction)]
        elif eviction == "lru":
            del held[expert]
        held[expert] = next_use[at] if eviction == "belady" else at
    return misses


def _evicted(held: dict[int, int], eviction: Eviction) -> int:
    match eviction:
        case "lifo":
            return next(reversed(held))
        case "lru":
            return next(iter(held))
        case "belady":
            return max(held, key=lambda expert: (held[expert], expert))


def passes(counts: Counts, num_passes: int, rng: np.random.Generator) -> list[int]:
    """Experts used in `num_passes` forward passes, each in the order of their ids, by the probability that a pass touches them."""
    used = rng.random((num_passes, len(counts))) < touched(counts)
    return [int(expert) for _, expert in np.argwhere(used)]


def effect(counts: Counts, room: int, expert_bytes: float, bytes_per_s: float, quality: float, eviction: Eviction, seed: int = 0) -> Effect:
    """Mean over some passes of one task's counts. Quality is that of the model whose experts are buffered: all of them are there."""
    num_passes = 64
    misses = num_misses(passes(counts, num_passes, np.random.default_rng(seed)), room, eviction) / num_passes
    return Effect(misses * expert_bytes / bytes_per_s, quality)


def _next_uses(accesses: Sequence[int]) -> list[int]:
    following: dict[int, int] = {}
    uses = [NEVER] * len(accesses)
    for at in range(len(accesses) - 1, -1, -1):
        uses[at] = following.get(accesses[at], NEVER)
        following[accesses[at]] = at
    return uses
