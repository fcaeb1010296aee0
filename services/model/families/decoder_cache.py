"""What a decoder-only model keeps of the tasks that it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from services.model.families.layers import grown
from services.model.families.replays import Numbers, Replays, sources

FEWEST_CACHED_TOKENS = 32


@dataclass(slots=True)
class DecoderCache:
    """Keys and values of every block, one slot a task. The token axis doubles when a task outgrows it."""

    num_slots: int
    kept: Tensor  # (num_blocks, 2, num_slots, num_key_heads, max_tokens, d_head)
    positions: list[int]  # tokens of prompt and answer that are in `kept`
    last_tokens: list[int]  # the one after them, which the next step reads
    replays: Replays

    @property
    def length(self) -> int:
        """How many tokens there is room for."""
        return self.kept.shape[4]

    def columns(self, slots: Sequence[int], count: int) -> Numbers:
        """Inputs of a recorded step of the first `count` slots, of which these are asked for, with room for what it keeps."""
        self.kept = grown(self.kept, max(self.positions[:count]) + 1)
        rows_of = sources(slots, count)
        return np.array([[self.last_tokens[row] for row in rows_of], self.positions[:count], rows_of])
