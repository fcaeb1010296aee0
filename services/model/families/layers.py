"""Tensor functions that the forward passes of families share: norm, relative positions, attention, mixtures of experts.

No state and no checkpoint names here; a family decides which function runs on which weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]
Product = Callable[[Tensor, str], Tensor]  # hidden states times the expert's matrix of that name, (..., width in) to (..., width out)
Expert = Callable[[Product, Tensor], Tensor]  # one expert's function, told by its matrix products; it may not mix tokens

SMALL_EXPERT_PARAMS = 1 << 15  # up to it one batched product over all experts beats one product an expert
CHUNK_TOKENS = 64
GATHER_PARAMS = 1 << 20  # most expert weights that may be copied to save the sort


def gelu_new(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Activation] = {"relu": F.relu, "gelu": F.gelu, "gelu_new": gelu_new, "silu": F.silu}


def plain_expert(activation: Activation) -> Expert:
    """`wo act(wi x)`."""
    return lambda product, x: product(activation(product(x, "wi")), "wo")


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.T` in the dtype the weight is stored in; the result is float32."""
    if weight.dtype == torch.float32:
        return F.linear(x, weight)
    return F.linear(x.to(weight.dtype), weight).float()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale without shift or mean (Raffel et al. 2020, §2.1), in float32."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def position_buckets(relative: Tensor, bidirectional: bool, num_buckets: int, max_distance: int) -> Tensor:
    """Bucket of each relative position (key minus query): exact when near, logarithmic when far (Raffel et al. 2020, §2.1)."""
    offset = torch.zeros_like(relative)
    if bidirectional:
        num_buckets //= 2
        offset = (relative > 0).long() * num_buckets
        distance = relative.abs()
    else:
        distance = (-relative).clamp(min=0)
    exact = num_buckets // 2
    ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (num_buckets - exact)).long()).clamp(max=num_buckets - 1)
    return offset + torch.where(distance < exact, distance, far)


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(rows, tokens, heads * d_kv) to (rows, heads, tokens, d_kv)."""
    rows, tokens, width = x.shape
    return x.view(rows, tokens, num_heads, width // num_heads).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Attention without scaling, `bias` added to the scores; heads joined again: (rows, tokens, heads * d_kv)."""
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
    rows, heads, tokens, width = mixed.shape
    return mixed.transpose(1, 2).reshape(rows, tokens, heads * width)


class _Place(torch.autograd.Function):
    """Copies rows to distinct places of a zeroed buffer. The places being distinct, both ways are plain copies."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, num_places: int) -> Tensor:
        ctx.save_for_backward(places)
        return x.new_zeros(num_places, x.shape[1]).index_copy_(0, places, x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return grad.index_select(0, places), None, None


class _Take(torch.autograd.Function):
    """The inverse of `_Place`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.num_places = x.shape[0]
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return grad.new_zeros(ctx.num_places, grad.shape[1]).index_copy_(0, places, grad), None


def apply_experts(x: Tensor, rows: Tensor, wi: Tensor, wo: Tensor, activation: Activation) -> Tensor:
    """Each token through one expert. `x` (num_tokens, d_model), `rows` (num_tokens,), `wi` (E, d_ff, d_model), `wo` (E, d_model, d_ff)."""
    expert_params = wi.shape[1] * wi.shape[2] * 2
    if expert_params > SMALL_EXPERT_PARAMS:
        return _one_product_an_expert(x, rows, wi, wo, activation)
    if x.shape[0] * expert_params <= GATHER_PARAMS and not torch.is_grad_enabled():
        hidden = activation(torch.bmm(wi.index_select(0, rows).to(x.dtype), x.unsqueeze(2)))
        return torch.bmm(wo.index_select(0, rows).to(x.dtype), hidden).squeeze(2)
    return _chunked_product(x, rows, wi, wo, activation)


def _chunked_product(x: Tensor, rows: Tensor, wi: Tensor, wo: Tensor, activation: Activation) -> Tensor:
    """Tokens sorted by expert and cut into chunks of one expert each, the last of an expert padded: one batched product for all."""
    counts = torch.bincount(rows, minlength=wi.shape[0])
    num_chunks = (counts + CHUNK_TOKENS - 1) // CHUNK_TOKENS
    expert_of_chunk = torch.repeat_interleave(num_chunks)
    order = torch.argsort(rows)
    sorted_rows = rows[order]
    first_place = (num_chunks.cumsum(0) - num_chunks) * CHUNK_TOKENS - (counts.cumsum(0) - counts)
    places = torch.empty_like(rows)
    places[order] = first_place[sorted_rows] + torch.arange(rows.numel(), device=rows.device)
    num_places = expert_of_chunk.numel() * CHUNK_TOKENS
    padded = _Place.apply(x, places, num_places).view(-1, CHUNK_TOKENS, x.shape[1])  # type: ignore[no-untyped-call]
    hidden = activation(torch.bmm(padded, wi.index_select(0, expert_of_chunk).to(x.dtype).transpose(1, 2)))
    mixed = torch.bmm(hidden, wo.index_select(0, expert_of_chunk).to(x.dtype).transpose(1, 2))
    return _Take.apply(mixed.view(num_places, -1), places)  # type: ignore[no-untyped-call, no-any-return]


def _one_product_an_expert(x: Tensor, rows: Tensor, wi: Tensor, wo: Tensor, activation: Activation) -> Tensor:
    order = torch.argsort(rows)
    hit, counts = torch.unique_consecutive(rows[order], return_counts=True)
    parts = torch.split(x.index_select(0, order), counts.tolist())
    outputs = [linear(activation(linear(part, wi[row])), wo[row]) for row, part in zip(hit.tolist(), parts, strict=True)]
    if not outputs:
        return torch.zeros_like(x)
    places = torch.empty_like(order)
    places[order] = torch.arange(order.numel(), device=order.device)
    return _Take.apply(torch.cat(outputs), places)  # type: ignore[no-untyped-call, no-any-return]
