"""What a Switch model keeps of the tasks that it answers, and what one step of it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.model.families.layers import grown, slot_index
from services.model.families.replays import Numbers, Replays, sources

FEWEST_CACHED_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Step:
    """What one step reads; tensors have a number for each row, that is for each slot of `chosen`, whose numbers `rows` are too."""

    tokens: Tensor
    positions: Tensor
    prompt_lengths: Tensor
    rows: Tensor
    chosen: slice | Tensor
    num_keys: int
    num_prompt_keys: int
    sources: Tensor | None = None  # the rows whose experts are taken, where it is not each its own

    @classmethod
    def recorded(cls, inputs: Tensor, lengths: tuple[int, int]) -> Step:
        """Of `SwitchCache.columns`, on the device: the first so many slots, with all that is kept of them."""
        tokens, positions, prompt_lengths, rows_of = inputs.unbind(0)
        count = inputs.shape[1]
        rows = torch.arange(count, device=inputs.device)
        return cls(tokens, positions, prompt_lengths, rows, slice(0, count), *lengths, rows_of)


@dataclass(slots=True)
class SwitchCache:
    """Keys and values of every decoder block, one slot a task. Token axes double when a task outgrows them."""

    num_slots: int
    own: Tensor  # (num_blocks, 2, num_slots, num_heads, max_target_tokens, d_kv)
    cross: Tensor  # (num_blocks, 2, num_slots, num_heads, max_prompt_tokens, d_kv)
    positions: list[int]  # tokens emitted so far
    last_tokens: list[int]
    prompt_lengths: list[int]
    replays: Replays

    @property
    def lengths(self) -> tuple[int, int]:
        """How many tokens there is room for, of answers and of prompts."""
        return self.own.shape[4], self.cross.shape[4]

    def begun(self, slots: Sequence[int], prompts: Sequence[Sequence[int]], start_token: int) -> None:
        for slot, prompt in zip(slots, prompts, strict=True):
            self.positions[slot] = 0
            self.last_tokens[slot] = start_token
            self.prompt_lengths[slot] = len(prompt)

    def emitted(self, slots: Sequence[int], tokens: Sequence[int]) -> None:
        for slot, token in zip(slots, tokens, strict=True):
            self.last_tokens[slot] = token
            self.positions[slot] += 1

    def next_step(self, slots: Sequence[int]) -> Step:
        """Of these slots, with room for what it keeps."""
        device = self.own.device
        positions, prompt_lengths = ([each[slot] for slot in slots] for each in (self.positions, self.prompt_lengths))
        self.own = grown(self.own, max(positions) + 1)
        return Step(
            torch.tensor([self.last_tokens[slot] for slot in slots], device=device),
            torch.tensor(positions, device=device),
            torch.tensor(prompt_lengths, device=device),
            torch.as_tensor(slots, device=device),
            slot_index(slots, device),
            max(positions) + 1,
            max(prompt_lengths),
        )

    def columns(self, slots: Sequence[int], count: int) -> Numbers:
        """Inputs of a recorded step of the first `count` slots, of which these are asked for, with room for what it keeps."""
        self.own = grown(self.own, max(self.positions[:count]) + 1)
        rows_of = sources(slots, count)
        last_tokens = [self.last_tokens[row] for row in rows_of]
        prompt_lengths = [max(1, length) for length in self.prompt_lengths[:count]]
        return np.array([last_tokens, self.positions[:count], prompt_lengths, rows_of])
