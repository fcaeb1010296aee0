"""Builds a Switch model again from its tensors by name, as `MoeModel.parameters()` gives them: how a version read from blobs starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from services.model.errors import CheckpointError
from services.model.families.base import ExpertStack
from services.model.families.switch_weights import Attention, Block, Router, Stack, SwitchConfig, SwitchWeights


class SwitchParts:
    """Takes tensors by name and checks each one's shape against the config; what is left over is an error too."""

    def __init__(self, config: SwitchConfig, tensors: Mapping[str, Tensor]) -> None:
        self._config = config
        self._tensors = dict(tensors)
        self.layer_names: list[str] = []

    def weights(self) -> SwitchWeights:
        config = self._config
        shared = self._take("shared", config.vocab_size, config.d_model)
        head = None if config.tie_word_embeddings else self._take("lm_head", config.vocab_size, config.d_model)
        encoder = self._stack("encoder", config.num_layers, shared)
        decoder = self._stack("decoder", config.num_decoder_layers, shared)
        if self._tensors:
            raise CheckpointError(f"tensor {min(self._tensors)!r} belongs to no part of this model")
        return SwitchWeights(shared, head, encoder, decoder)

    def check_experts(self, experts: Sequence[ExpertStack]) -> None:
        config = self._config
        if len(experts) != len(self.layer_names):
            raise CheckpointError(f"{len(experts)} expert stacks for {len(self.layer_names)} MoE layers")
        for name, stack in zip(self.layer_names, experts, strict=True):
            expected = {"wi": (config.d_ff, config.d_model), "wo": (config.d_model, config.d_ff)}
            problem = stack.shapes_problem(expected)
            if problem is not None or tuple(stack.index_map.shape) != (config.num_experts,):
                told = problem or f"{stack.index_map.numel()} places"
                raise CheckpointError(f"{name}: experts have {told}, config.json asks for {config.num_experts} of {expected}")

    def _take(self, name: str, *shape: int) -> Tensor:
        tensor = self._tensors.pop(name, None)
        if tensor is None:
            raise CheckpointError(f"tensor {name!r} is missing")
        if tuple(tensor.shape) != shape:
            raise CheckpointError(f"tensor {name!r} has shape {tuple(tensor.shape)}, config.json asks for {shape}")
        return tensor

    def _stack(self, name: str, num_blocks: int, shared: Tensor) -> Stack:
        config = self._config
        untied = f"{name}.embedding" in self._tensors
        return Stack(
            tuple(self._block(name, index) for index in range(num_blocks)),
            self._take(f"{name}.embedding", config.vocab_size, config.d_model) if untied else shared,
            self._take(f"{name}.position_bias", config.relative_attention_num_buckets, config.num_heads),
            self._take(f"{name}.final_norm", config.d_model),
        )

    def _block(self, stack: str, index: int) -> Block:
        config, prefix = self._config, f"{stack}.{index}"
        own = self._attention(f"{prefix}.self", 3, apart=False)
        cross = self._attention(f"{prefix}.cross", 2, apart=True) if stack == "decoder" else None
        norm = self._take(f"{prefix}.norm", config.d_model)
        if f"{prefix}.router.weight" not in self._tensors:
            wi = self._take(f"{prefix}.wi", config.d_ff, config.d_model)
            return Block(own, cross, norm, wi, self._take(f"{prefix}.wo", config.d_model, config.d_ff), None, -1)
        weight = self._take(f"{prefix}.router.weight", config.num_experts, config.d_model)
        bias_name = f"{prefix}.router.bias"
        bias = self._take(bias_name, config.num_experts) if bias_name in self._tensors else None
        self.layer_names.append(f"{stack}.block.{index}")
        return Block(own, cross, norm, None, None, Router(weight, bias), len(self.layer_names) - 1)

    def _attention(self, prefix: str, num_fused: int, apart: bool) -> Attention:
        config = self._config
        inner = config.num_heads * config.d_kv
        return Attention(
            self._take(f"{prefix}.norm", config.d_model),
            self._take(f"{prefix}.into", num_fused * inner, config.d_model),
            self._take(f"{prefix}.out", config.d_model, inner),
            self._take(f"{prefix}.query", inner, config.d_model) if apart else None,
        )
