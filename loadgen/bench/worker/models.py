"""A Switch Transformers model with random weights, for the worker's engine and for transformers: both over the same tensors.

Weights are drawn as transformers would (its `initializer_factor` of 1), a seed makes them equal
in every dtype up to rounding. The end token is none, so that answers have the lengths that they are told to have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loadgen.bench.sizes import NUM_BUCKETS, Sizes
from services.model.compensation import packed_experts
from services.model.families.base import ExpertStack
from services.model.families.layers import apply_experts
from services.model.families.packed_weights import PackedWeights
from services.model.families.switch import FAMILY, SwitchModel
from services.model.records import RecordLayout

NO_TOKEN = -1
BITS = 4
CHECKED_TOKENS = (1, 3, 8, 30)  # of the first experts of a layer


def random_model(sizes: Sizes, dtype: torch.dtype, seed: int, device: torch.device) -> SwitchModel:
    draw = _Draw(torch.Generator(device).manual_seed(seed), dtype)
    tensors = {"shared": draw.normal(1.0, sizes.vocab_size, sizes.d_model)}
    experts: list[ExpertStack] = []
    for stack in ("encoder", "decoder"):
        tensors[f"{stack}.position_bias"] = draw.normal(sizes.d_model**-0.5, NUM_BUCKETS, sizes.num_heads)
        tensors[f"{stack}.final_norm"] = draw.ones(sizes.d_model)
        for block in range(sizes.num_blocks):
            tensors.update(_block(sizes, draw, f"{stack}.{block}", is_sparse=block % 2 == 1))
            if block % 2 == 1:
                experts.append(_experts(sizes, draw))
    model = FAMILY.assemble({**sizes.config(), "eos_token_id": NO_TOKEN}, tensors, experts)
    assert isinstance(model, SwitchModel)
    return model


def transformers_model(sizes: Sizes, model: SwitchModel) -> Any:
    """transformers' own model on the memory of ours: its attention through torch's fused kernel, where it has that."""
    from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

    config = SwitchTransformersConfig.from_dict(sizes.config())
    with torch.device("meta"):
        rival = SwitchTransformersForConditionalGeneration(config)
    tensors = model.as_written()
    tensors |= {name: tensors["shared.weight"] for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")}
    rival.load_state_dict(tensors, assign=True)
    rival.tie_weights()
    rival.requires_grad_(False)
    rival.generation_config.eos_token_id = None
    return rival.eval()


def merged(model: SwitchModel, kept_share: float) -> SwitchModel:
    """Neighbours in groups, their weights averaged. What it answers is worth nothing; what it costs depends on shapes alone."""
    return model.with_experts([_merged(stack, kept_share) for stack in model.experts])


def _merged(stack: ExpertStack, kept_share: float) -> ExpertStack:
    group = round(1 / kept_share)
    weights = {
        name: torch.stack([part.float().mean(0).to(part.dtype) for part in torch.split(weight, group)])
        for name, weight in stack.weights.items()
    }
    return ExpertStack(weights, stack.index_map // group)


@dataclass(frozen=True, slots=True)
class FourBits:
    """Experts rounded by the product; how far any layer's output is from that of its weights unpacked, at most, over its largest."""

    experts: list[ExpertStack]
    layer_difference: float

    @property
    def num_bytes(self) -> int:
        return sum(stack.num_bytes() for stack in self.experts)


def four_bits(model: SwitchModel) -> FourBits:
    """Laid out for products, a layer after another."""
    experts, differences = [], []
    for stack in model.experts:
        packed = _packed(stack)
        laid_out = packed.blocked()
        experts.append(ExpertStack(laid_out, stack.index_map))
        differences.append(_difference(packed, laid_out, model))
    return FourBits(experts, max(differences))


def _packed(stack: ExpertStack) -> PackedWeights:
    """One expert at a time, so that float32 of a stack is never beside it; on a GPU all, which take as long as one there."""
    at_once = 1 if stack.index_map.device.type == "cpu" else stack.num_kept
    matrices = {
        name: [matrix for part in torch.split(weight, at_once) for matrix in packed_experts(part.float(), None, BITS)]
        for name, weight in stack.weights.items()
    }
    experts = [{name: matrices[name][row] for name in matrices} for row in range(stack.num_kept)]
    layout = RecordLayout.of(experts[0])
    return PackedWeights({layout: torch.stack([layout.record(expert) for expert in experts])}, stack.index_map.device)


def _difference(packed: PackedWeights, laid_out: PackedWeights, model: SwitchModel) -> float:
    """Over the largest output. Some experts get as many tokens as in a step, others as many as in a prefill."""
    rows = torch.repeat_interleave(torch.arange(len(CHECKED_TOKENS)), torch.tensor(CHECKED_TOKENS)).to(model.device)
    x = torch.randn(len(rows), model.shape.d_model, generator=torch.Generator().manual_seed(0)).to(model.device)
    with torch.inference_mode():
        exact, made = (apply_experts(x, rows, weights, model.expert) for weights in (packed, laid_out))
    return float((made - exact).abs().max() / exact.abs().max())


class _Draw:
    """Normal numbers in float32, rounded to the dtype."""

    def __init__(self, generator: torch.Generator, dtype: torch.dtype) -> None:
        self._generator = generator
        self._dtype = dtype

    def normal(self, std: float, *shape: int) -> Tensor:
        return torch.empty(shape, device=self._generator.device).normal_(0.0, std, generator=self._generator).to(self._dtype)

    def ones(self, num: int) -> Tensor:
        return torch.ones(num, dtype=self._dtype, device=self._generator.device)


def _block(sizes: Sizes, draw: _Draw, prefix: str, is_sparse: bool) -> Iterator[tuple[str, Tensor]]:
    width, inner = sizes.d_model, sizes.inner
    query_std, std = (width * sizes.d_kv) ** -0.5, width**-0.5
    for kind in ("self",) if prefix.startswith("encoder") else ("self", "cross"):
        query, rest = draw.normal(query_std, inner, width), draw.normal(std, 2 * inner, width)
        yield f"{prefix}.{kind}.norm", draw.ones(width)
        yield f"{prefix}.{kind}.out", draw.normal(inner**-0.5, width, inner)
        if kind == "self":
            yield f"{prefix}.self.into", torch.cat([query, rest])
        else:
            yield from ((f"{prefix}.cross.query", query), (f"{prefix}.cross.into", rest))
    yield f"{prefix}.norm", draw.ones(width)
    if is_sparse:
        yield f"{prefix}.router.weight", draw.normal(1.0, sizes.num_experts, width)
    else:
        yield f"{prefix}.wi", draw.normal(std, sizes.d_ff, width)
        yield f"{prefix}.wo", draw.normal(sizes.d_ff**-0.5, width, sizes.d_ff)


def _experts(sizes: Sizes, draw: _Draw) -> ExpertStack:
    """One expert at a time, so that float32 of a stack is never beside it."""
    wi, wo = (sizes.d_ff, sizes.d_model), (sizes.d_model, sizes.d_ff)
    weights = {"wi": _stacked(draw, sizes.num_experts, wi), "wo": _stacked(draw, sizes.num_experts, wo)}
    return ExpertStack(weights, torch.arange(sizes.num_experts, device=weights["wi"].device))


def _stacked(draw: _Draw, num: int, shape: Sequence[int]) -> Tensor:
    std = min(shape) ** -0.5  # of d_model, for both matrices, as transformers has it
    first = draw.normal(std, *shape)
    stack = first.new_empty(num, *shape)
    stack[0] = first
    for row in range(1, num):
        stack[row] = draw.normal(std, *shape)
    return stack
