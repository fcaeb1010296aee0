"""What the rest of moedge may know of a MoE model: its shape, its experts, and how to run it.

A family (one file beside this one) turns a checkpoint directory into a `MoeModel`. Nothing here assumes top-1 routing, an encoder,
or one matrix shape per expert; nothing outside a family file may.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from services.model.families.blocked import BlockedStack, blocked_stack
from services.model.families.layers import Expert
from services.model.families.packed_weights import PackedWeights

OUT = "wo"  # the matrix that leads out of an expert's hidden units, in every family


@dataclass(frozen=True, slots=True)
class MoeLayer:
    """One MoE layer: where it sits and what one of its experts weighs."""

    name: str  # e.g. "encoder.block.1"
    num_experts: int
    top_k: int
    expert_params: int  # parameters of one expert


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a model, independent of how far it is merged."""

    family: str
    layers: tuple[MoeLayer, ...]
    d_model: int
    vocab_size: int
    non_expert_params: int  # unique parameters outside experts, routers included
    eos_token_ids: tuple[int, ...]  # any of them ends an answer; answers to train on end with the first
    continues_prompt: bool = False  # prompt and answer are one text (decoder-only), or else two


@dataclass(slots=True)
class ExpertStack:
    """The experts of one MoE layer in merged form. Unmerged is the case `index_map == arange(num_experts)`.

    `weights[name]` has shape (num_kept, *matrix_shape); hidden units are the last axis of `wo`, and the first matrix axis of all others
    (`wi` of a plain expert, `gate` and `up` of a gated one).
    `index_map` (num_experts,) int64 sends each original expert to its row.
    The router is not part of it: it keeps all its outputs and belongs to the model.
    Packed experts (`PackedWeights`) have records by form as their weights, and their `index_map` may lead beyond the last row: to nothing.
    """

    weights: Mapping[str, Tensor]
    index_map: Tensor

    @property
    def num_kept(self) -> int:
        return self.weights.num_kept if isinstance(self.weights, PackedWeights) else int(next(iter(self.weights.values())).shape[0])

    @property
    def is_packed(self) -> bool:
        return isinstance(self.weights, PackedWeights)

    @property
    def is_blocked(self) -> bool:
        """Whether some of it is laid out for products."""
        if isinstance(self.weights, PackedWeights):
            return self.weights.is_blocked
        return any(isinstance(weight, BlockedStack) for weight in self.weights.values())

    def shapes_problem(self, expected: Mapping[str, tuple[int, int]]) -> str | None:
        """What keeps these experts from being ones of matrices so large (packed ones may have fewer hidden units); none if nothing does."""
        if isinstance(self.weights, PackedWeights):
            return self.weights.shapes_problem(expected, OUT)
        found = {matrix: tuple(weight.shape[1:]) for matrix, weight in self.weights.items()}
        return None if found == expected else f"shapes {found}"

    def blocked(self) -> ExpertStack:
        if isinstance(self.weights, PackedWeights):
            return ExpertStack(self.weights.blocked(), self.index_map)
        return ExpertStack({name: blocked_stack(weight) for name, weight in self.weights.items()}, self.index_map)

    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.weights.values())

    def release(self) -> None:
        """Give back memory whose content can be read again from where it came; weights keep their values. Here there is none."""


class Recorder(Protocol):
    """Sees every routing choice. Padding never reaches it."""

    def record(self, layer: int, chosen: Tensor, logits: Tensor, inputs: Tensor, gates: Tensor) -> None:
        """`chosen` (num_tokens, top_k) int64 original experts; `logits` (num_tokens, num_experts) float32.

        `inputs` (num_tokens, d_model) float32 are what the experts get; `gates` (num_tokens, top_k) what their outputs are multiplied by.
        """
        ...


class Cache(Protocol):
    """State of the tasks being generated, one slot a task. Opaque outside the family."""

    num_slots: int


class MoeModel(Protocol):
    """A loaded model. Several may share all tensors but their experts (`with_experts`)."""

    shape: ModelShape

    @property
    def device(self) -> torch.device: ...

    @property
    def experts(self) -> Sequence[ExpertStack]:
        """One a MoE layer, in the order of `shape.layers`."""
        ...

    @property
    def routers(self) -> Sequence[Tensor]:
        """(num_experts, d_model) float32 each."""
        ...

    @property
    def expert(self) -> Expert:
        """What one expert computes, told by products with its named matrices."""
        ...

    def with_experts(self, experts: Sequence[ExpertStack]) -> MoeModel:
        """The same model with other experts; shares every other tensor, copies nothing."""
        ...

    def blocked(self) -> MoeModel:
        """The same model for serving alone, its matrices laid out for products where that pays (`blocked.py`). It answers the same."""
        ...

    def parameters(self) -> Mapping[str, Tensor]:
        """Unique tensors by name (experts as stacked tensors), for training and for memory accounting."""
        ...

    def new_cache(self, num_slots: int) -> Cache: ...

    def prefill(self, cache: Cache, slots: Sequence[int], prompts: Sequence[Sequence[int]], recorder: Recorder | None = None) -> None:
        """Read prompts (token ids, unpadded, already ending as the tokenizer ends them) into free slots. Gives no token: `step` does."""
        ...

    def step(self, cache: Cache, slots: Sequence[int], recorder: Recorder | None = None) -> list[int]:
        """One greedy decoding step of the given slots; the next token id of each. Slots may be at different positions."""
        ...

    def force(self, cache: Cache, slot: int, tokens: Sequence[int]) -> None:
        """Replay already emitted tokens into a prefilled slot, so that generation continues after them (resume on another edge)."""
        ...

    def teacher_forced(
        self, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], recorder: Recorder | None = None
    ) -> Tensor:
        """Logits (num_rows, max_target_len, vocab) of each target token given the ones before it; differentiable when grad is on."""
        ...


class Family(Protocol):
    """Reads checkpoints of one architecture."""

    name: str

    def accepts(self, config: Mapping[str, object]) -> bool:
        """Whether this `config.json` is of this family (`model_type`, `architectures`)."""
        ...

    def read(self, directory: Path, dtype: torch.dtype, device: torch.device, experts_dir: Path | None = None) -> MoeModel:
        """With `experts_dir` experts are kept there and mapped into memory, instead of held.

        Raises `services.model.errors.CheckpointError` naming the file or tensor that is missing or wrong.
        """
        ...

    def assemble(self, config: Mapping[str, object], tensors: Mapping[str, Tensor], experts: Sequence[ExpertStack]) -> MoeModel:
        """The model again from its `config.json`, its `parameters()` without experts, and experts in any merged form.

        Raises `CheckpointError` naming the tensor that is missing, left over or of another shape. Copies nothing.
        """
        ...
