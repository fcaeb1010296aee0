"""The weights of a Switch Transformers checkpoint: read from and written to safetensors under transformers' names.

No forward pass here. Query, key and value matrices are fused and experts stacked on reading, and taken apart again on writing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from services.model.errors import CheckpointError
from services.model.families.base import ExpertStack
from services.model.families.blocked import blocked, widened
from services.model.families.tensors import TensorSource, read_json


@dataclass(frozen=True, slots=True)
class SwitchConfig:
    """The fields of `config.json` that the forward pass needs."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    num_experts: int
    relative_attention_num_buckets: int
    relative_attention_max_distance: int
    layer_norm_epsilon: float
    dense_act_fn: str
    tie_word_embeddings: bool
    eos_token_id: int
    decoder_start_token_id: int


DEFAULTS: dict[str, object] = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "dense_act_fn": "relu",
    "tie_word_embeddings": True,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}


@dataclass(frozen=True, slots=True)
class Attention:
    """`into`: query, key and value of self-attention fused, or key and value alone of cross-attention; `query` is then apart."""

    norm: Tensor
    into: Tensor
    out: Tensor
    query: Tensor | None = None

    def blocked(self) -> Attention:
        return Attention(widened(self.norm), blocked(self.into), blocked(self.out), None if self.query is None else blocked(self.query))


@dataclass(frozen=True, slots=True)
class Router:
    weight: Tensor
    bias: Tensor | None

    def widened(self) -> Router:
        return Router(widened(self.weight), None if self.bias is None else widened(self.bias))


@dataclass(frozen=True, slots=True)
class Block:
    """One block of either stack. A sparse block has a router and its place among the MoE layers, a dense one `wi` and `wo`."""

    self_attention: Attention
    cross_attention: Attention | None
    norm: Tensor
    wi: Tensor | None
    wo: Tensor | None
    router: Router | None
    moe_layer: int

    def blocked(self) -> Block:
        """Routers multiply in float32."""
        return replace(
            self,
            norm=widened(self.norm),
            router=None if self.router is None else self.router.widened(),
            self_attention=self.self_attention.blocked(),
            cross_attention=None if self.cross_attention is None else self.cross_attention.blocked(),
            wi=None if self.wi is None else blocked(self.wi),
            wo=None if self.wo is None else blocked(self.wo),
        )


@dataclass(frozen=True, slots=True)
class Stack:
    blocks: tuple[Block, ...]
    embedding: Tensor  # the model's `shared` where tied
    position_bias: Tensor
    final_norm: Tensor

    def blocked(self) -> Stack:
        blocks = tuple(block.blocked() for block in self.blocks)
        return Stack(blocks, self.embedding, widened(self.position_bias), widened(self.final_norm))


@dataclass(frozen=True, slots=True)
class SwitchWeights:
    """Everything but the experts."""

    shared: Tensor
    lm_head: Tensor | None  # none where tied to `shared`
    encoder: Stack
    decoder: Stack

    def blocked(self) -> SwitchWeights:
        """What is only multiplied with, laid out for it; an embedding that gives logits too stays, as rows of it are read."""
        head = None if self.lm_head is None else blocked(self.lm_head)
        return SwitchWeights(self.shared, head, self.encoder.blocked(), self.decoder.blocked())

    def named(self) -> Iterator[tuple[str, Tensor]]:
        yield "shared", self.shared
        if self.lm_head is not None:
            yield "lm_head", self.lm_head
        for name, stack in (("encoder", self.encoder), ("decoder", self.decoder)):
            if stack.embedding is not self.shared:
                yield f"{name}.embedding", stack.embedding
            yield f"{name}.position_bias", stack.position_bias
            yield f"{name}.final_norm", stack.final_norm
            for index, block in enumerate(stack.blocks):
                for part, tensor in _block_tensors(block):
                    yield f"{name}.{index}.{part}", tensor


def _block_tensors(block: Block) -> Iterator[tuple[str, Tensor]]:
    for name, attention in (("self", block.self_attention), ("cross", block.cross_attention)):
        if attention is not None:
            for field in fields(attention):
                tensor = getattr(attention, field.name)
                if tensor is not None:
                    yield f"{name}.{field.name}", tensor
    yield "norm", block.norm
    if block.router is not None:
        yield "router.weight", block.router.weight
        if block.router.bias is not None:
            yield "router.bias", block.router.bias
    for name, tensor in (("wi", block.wi), ("wo", block.wo)):
        if tensor is not None:
            yield name, tensor


def read_config(directory: Path) -> SwitchConfig:
    return config_of(read_json(directory / "config.json"), str(directory / "config.json"))


def config_of(raw: Mapping[str, object], source: str) -> SwitchConfig:
    """The fields of a `config.json` already parsed; `source` is named in errors."""
    values: dict[str, object] = {}
    for field in fields(SwitchConfig):
        value = raw.get(field.name, DEFAULTS.get(field.name))
        if value is None:
            raise CheckpointError(f"{source}: field {field.name!r} is missing")
        values[field.name] = value
    return SwitchConfig(**values)  # type: ignore[arg-type]


class SwitchReader:
    """Reads one checkpoint. Whether a block is sparse is found from the tensors present."""

    def __init__(self, config: SwitchConfig, source: TensorSource) -> None:
        self._config = config
        self._source = source
        self.layer_names: list[str] = []
        self.experts: list[ExpertStack] = []

    def read(self) -> SwitchWeights:
        config = self._config
        shared = self._source.read("shared.weight", config.vocab_size, config.d_model)
        head = None if config.tie_word_embeddings else self._source.read("lm_head.weight", config.vocab_size, config.d_model)
        encoder = self._stack("encoder", config.num_layers, shared)
        return SwitchWeights(shared, head, encoder, self._stack("decoder", config.num_decoder_layers, shared))

    def _stack(self, name: str, num_blocks: int, shared: Tensor) -> Stack:
        config = self._config
        bias_name = f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        embedding_name = f"{name}.embed_tokens.weight"
        untied = not config.tie_word_embeddings and embedding_name in self._source
        return Stack(
            tuple(self._block(f"{name}.block.{index}", name == "decoder") for index in range(num_blocks)),
            self._source.read(embedding_name, config.vocab_size, config.d_model) if untied else shared,
            self._source.read(bias_name, config.relative_attention_num_buckets, config.num_heads),
            self._source.read(f"{name}.final_layer_norm.weight", config.d_model),
        )

    def _block(self, prefix: str, is_decoder: bool) -> Block:
        source, config = self._source, self._config
        last = 2 if is_decoder else 1
        mlp = f"{prefix}.layer.{last}.mlp"
        block = Block(
            self._attention(f"{prefix}.layer.0", "SelfAttention", "qkv"),
            self._attention(f"{prefix}.layer.1", "EncDecAttention", "kv") if is_decoder else None,
            source.read(f"{prefix}.layer.{last}.layer_norm.weight", config.d_model),
            None,
            None,
            None,
            -1,
        )
        if f"{mlp}.router.classifier.weight" not in source:
            return replace(
                block,
                wi=source.read(f"{mlp}.wi.weight", config.d_ff, config.d_model),
                wo=source.read(f"{mlp}.wo.weight", config.d_model, config.d_ff),
            )
        bias_name = f"{mlp}.router.classifier.bias"
        router = Router(
            source.read(f"{mlp}.router.classifier.weight", config.num_experts, config.d_model),
            source.read(bias_name, config.num_experts) if bias_name in source else None,
        )
        self.layer_names.append(prefix)
        self.experts.append(self._experts(mlp))
        return replace(block, router=router, moe_layer=len(self.experts) - 1)

    def _attention(self, prefix: str, kind: str, fused: str) -> Attention:
        source, config = self._source, self._config
        inner = config.num_heads * config.d_kv
        parts = {part: source.read(f"{prefix}.{kind}.{part}.weight", inner, config.d_model) for part in "qkv"}
        return Attention(
            source.read(f"{prefix}.layer_norm.weight", config.d_model),
            torch.cat([parts[part] for part in fused]),
            source.read(f"{prefix}.{kind}.o.weight", config.d_model, inner),
            None if "q" in fused else parts["q"],
        )

    def _experts(self, mlp: str) -> ExpertStack:
        source, config = self._source, self._config
        names = [f"{mlp}.experts.expert_{index}" for index in range(config.num_experts)]
        shapes = {"wi": (config.d_ff, config.d_model), "wo": (config.d_model, config.d_ff)}
        return source.experts(mlp, {matrix: [f"{name}.{matrix}.weight" for name in names] for matrix in shapes}, shapes)


def write_weights(weights: SwitchWeights, experts: list[ExpertStack], path: Path) -> None:
    """The inverse of `SwitchReader`, for a model whose experts are unmerged."""
    written = {name: tensor.detach().contiguous().clone() for name, tensor in as_written(weights, experts).items()}
    save_file(written, path, {"format": "pt"})


def as_written(weights: SwitchWeights, experts: list[ExpertStack]) -> dict[str, Tensor]:
    """Every weight under transformers' name. Views: only cross-attention, whose query is apart here, is copied."""
    tensors: dict[str, Tensor] = {"shared.weight": weights.shared}
    if weights.lm_head is not None:
        tensors["lm_head.weight"] = weights.lm_head
    for name, stack in (("encoder", weights.encoder), ("decoder", weights.decoder)):
        if stack.embedding is not weights.shared:
            tensors[f"{name}.embed_tokens.weight"] = stack.embedding
        tensors[f"{name}.final_layer_norm.weight"] = stack.final_norm
        tensors[f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = stack.position_bias
        for index, block in enumerate(stack.blocks):
            tensors.update(_written_block(f"{name}.block.{index}", block, experts))
    return tensors


def _written_block(prefix: str, block: Block, experts: list[ExpertStack]) -> Mapping[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for layer, kind, attention in ((0, "SelfAttention", block.self_attention), (1, "EncDecAttention", block.cross_attention)):
        if attention is None:
            continue
        base = f"{prefix}.layer.{layer}"
        into = attention.into if attention.query is None else torch.cat([attention.query, attention.into])
        tensors[f"{base}.layer_norm.weight"] = attention.norm
        tensors[f"{base}.{kind}.o.weight"] = attention.out
        tensors.update({f"{base}.{kind}.{part}.weight": matrix for part, matrix in zip("qkv", into.chunk(3), strict=True)})
    last = 1 if block.cross_attention is None else 2
    mlp = f"{prefix}.layer.{last}.mlp"
    tensors[f"{prefix}.layer.{last}.layer_norm.weight"] = block.norm
    if block.router is None:
        assert block.wi is not None
        assert block.wo is not None
        tensors |= {f"{mlp}.wi.weight": block.wi, f"{mlp}.wo.weight": block.wo}
        return tensors
    tensors[f"{mlp}.router.classifier.weight"] = block.router.weight
    if block.router.bias is not None:
        tensors[f"{mlp}.router.classifier.bias"] = block.router.bias
    for matrix, stacked in experts[block.moe_layer].weights.items():
        tensors |= {f"{mlp}.experts.expert_{expert}.{matrix}.weight": weight for expert, weight in enumerate(stacked)}
    return tensors
