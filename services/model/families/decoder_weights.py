"""The weights of a decoder-only mixture of experts by name: which there are, their shapes, and what a checkpoint calls them.

Query, key and value are fused and experts stacked on reading. No forward pass here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.model.errors import CheckpointError
from services.model.families.base import ExpertStack
from services.model.families.decoder_config import DecoderConfig
from services.model.families.tensors import TensorSource

Stored = tuple[str, tuple[int, ...]]  # a tensor's name in the checkpoint and its shape
Parts = dict[str, tuple[Stored, ...]]  # by our name: the stored tensors that are one of ours, stacked along the first axis

_MATRICES = {"gate": "gate_proj", "up": "up_proj", "wo": "down_proj"}


@dataclass(frozen=True, slots=True)
class Naming:
    """What a family's checkpoints call the sparse part of a block, and the matrices of an expert there."""

    moe: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    wo: str = "down_proj"

    def expert(self, layer: int, expert: int, matrix: str) -> str:
        return f"model.layers.{layer}.{self.moe}.experts.{expert}.{getattr(self, matrix)}.weight"


USUAL_NAMES = Naming()


def expert_shapes(config: DecoderConfig, d_ff: int) -> dict[str, tuple[int, int]]:
    """The three matrices of a gated feed-forward part."""
    return {"gate": (d_ff, config.d_model), "up": (d_ff, config.d_model), "wo": (config.d_model, d_ff)}


def read_tensors(config: DecoderConfig, naming: Naming, source: TensorSource) -> tuple[dict[str, Tensor], list[ExpertStack]]:
    """Everything of a checkpoint: what is not an expert by our names, and one stack a sparse block."""
    tensors = {}
    for name, stored in all_parts(config, naming).items():
        read = [source.read(stored_name, *shape) for stored_name, shape in stored]
        tensors[name] = read[0] if len(read) == 1 else torch.cat(read)
    return tensors, [_read_stack(config, naming, source, layer) for layer in range(config.num_layers) if config.sparse[layer]]


def _read_stack(config: DecoderConfig, naming: Naming, source: TensorSource, layer: int) -> ExpertStack:
    shapes = expert_shapes(config, config.d_ff)
    names = {matrix: [naming.expert(layer, expert, matrix) for expert in range(config.num_experts)] for matrix in shapes}
    return source.experts(f"layer.{layer}", names, shapes)


def check_tensors(config: DecoderConfig, tensors: Mapping[str, Tensor], experts: Sequence[ExpertStack]) -> None:
    """Raises `CheckpointError` naming what is missing, left over or of another shape."""
    expected = {name: _fused(stored) for name, stored in all_parts(config, USUAL_NAMES).items()}
    for name, shape in expected.items():
        if name not in tensors:
            raise CheckpointError(f"tensor {name!r} is missing")
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(f"tensor {name!r} has shape {tuple(tensors[name].shape)}, config.json asks for {shape}")
    if left := tensors.keys() - expected.keys():
        raise CheckpointError(f"tensor {min(left)!r} belongs to no part of this model")
    if len(experts) != sum(config.sparse):
        raise CheckpointError(f"{len(experts)} expert stacks for {sum(config.sparse)} MoE layers")
    shapes = expert_shapes(config, config.d_ff)
    for number, stack in enumerate(experts):
        problem = stack.shapes_problem(shapes)
        if problem is not None or tuple(stack.index_map.shape) != (config.num_experts,):
            told = problem or f"{stack.index_map.numel()} places"
            raise CheckpointError(f"MoE layer {number}: experts have {told}, config.json asks for {config.num_experts} of {shapes}")


def all_parts(config: DecoderConfig, naming: Naming) -> Parts:
    """Every tensor that is not an expert's, by our names: "layers.3.into" and so on."""
    table = (config.vocab_size, config.d_model)
    parts: Parts = {"embedding": (("model.embed_tokens.weight", table),), "final_norm": (("model.norm.weight", (config.d_model,)),)}
    if not config.tied:
        parts["head"] = (("lm_head.weight", table),)
    for layer in range(config.num_layers):
        for name, stored in _block_parts(config, naming, layer):
            parts[f"layers.{layer}.{name}"] = tuple((f"model.layers.{layer}.{stored_name}", shape) for stored_name, shape in stored)
    return parts


def _block_parts(config: DecoderConfig, naming: Naming, layer: int) -> Iterator[tuple[str, tuple[Stored, ...]]]:
    d_model, widths = config.d_model, {"q": config.query_width, "k": config.key_width, "v": config.key_width}
    yield "attention_norm", (("input_layernorm.weight", (d_model,)),)
    yield "into", tuple((f"self_attn.{part}_proj.weight", (width, d_model)) for part, width in widths.items())
    yield "out", (("self_attn.o_proj.weight", (d_model, config.query_width)),)
    if config.input_bias:
        yield "into_bias", tuple((f"self_attn.{part}_proj.bias", (width,)) for part, width in widths.items())
    if config.output_bias:
        yield "out_bias", (("self_attn.o_proj.bias", (d_model,)),)
    if config.query_norm != "none":
        for name, part in (("query_norm", "q"), ("key_norm", "k")):
            width = config.d_head if config.query_norm == "head" else widths[part]
            yield name, ((f"self_attn.{part}_norm.weight", (width,)),)
    yield "norm", (("post_attention_layernorm.weight", (d_model,)),)
    if not config.sparse[layer]:
        yield from _gated("", "mlp", expert_shapes(config, config.dense_d_ff))
        return
    yield "router", ((f"{naming.moe}.gate.weight", (config.num_experts, d_model)),)
    if config.shared_d_ff:
        yield from _gated("shared.", f"{naming.moe}.shared_expert", expert_shapes(config, config.shared_d_ff))
        yield "shared.share", ((f"{naming.moe}.shared_expert_gate.weight", (1, d_model)),)


def _gated(prefix: str, stored_prefix: str, shapes: Mapping[str, tuple[int, int]]) -> Iterator[tuple[str, tuple[Stored, ...]]]:
    for matrix, shape in shapes.items():
        yield prefix + matrix, ((f"{stored_prefix}.{_MATRICES[matrix]}.weight", shape),)


def _fused(stored: Sequence[Stored]) -> tuple[int, ...]:
    return (sum(shape[0] for _, shape in stored), *stored[0][1][1:])
