"""Tensor functions that the forward passes of families share: norm, positions, attention, padding, mixtures of experts.

No state and no checkpoint names here; a family decides which function runs on which weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from services.model.errors import PromptError

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


def gated_expert(activation: Activation) -> Expert:
    """`wo (act(gate x) * up x)` (Shazeer 2020, GLU variants)."""
    return lambda product, x: product(activation(product(x, "gate")) * product(x, "up"), "wo")


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


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions in transformers' order (Su et al. 2021, halves instead of pairs); `cos` and `sin` broadcast to `x`."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(rows, tokens, heads * d_kv) to (rows, heads, tokens, d_kv)."""
    rows, tokens, width = x.shape
    return x.view(rows, tokens, num_heads, width // num_heads).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float = 1.0) -> Tensor:
    """Attention with `bias` added to the scores; heads joined again: (rows, tokens, heads * d_kv). A key head may serve several queries."""
    grouped = query.shape[1] != key.shape[1]
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale, enable_gqa=grouped)
    rows, heads, tokens, width = mixed.shape
    return mixed.transpose(1, 2).reshape(rows, tokens, heads * width)


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids, padded on the right, and which of them are not padding: both (num_rows, longest)."""
    if any(not row for row in rows):
        raise PromptError("prompt: empty after tokenization; send at least one token")
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *([0] * (longest - len(row)))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(longest, device=device) < lengths[:, None]


def plus_where(x: Tensor, valid: Tensor, added: Callable[[Tensor], Tensor]) -> Tensor:
    """`x` (rows, tokens, d_model) plus `added`, which is computed for the valid tokens alone: (num_valid, d_model) to the same."""
    places = valid.flatten().nonzero().squeeze(1)
    flat = x.reshape(-1, x.shape[-1])
    if places.numel() == flat.shape[0]:
        return x + added(flat).view_as(x)
    return flat.index_add(0, places, added(flat.index_select(0, places))).view_as(x)


def grown(cached: Tensor, num_tokens: int) -> Tensor:
    """A cache (blocks, 2, slots, heads, tokens, d_kv) that holds so many tokens; it at least doubles where it has to grow."""
    have = cached.shape[4]
    if num_tokens <= have:
        return cached
    return F.pad(cached, (0, 0, 0, max(num_tokens, 2 * have) - have))


def slot_index(slots: Sequence[int], device: torch.device) -> slice | Tensor:
    """A slice where the slots are consecutive, which copies nothing."""
    if list(slots) == list(range(slots[0], slots[0] + len(slots))):
        return slice(slots[0], slots[0] + len(slots))
    return torch.as_tensor(slots, device=device)


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


def mixed_experts(x: Tensor, rows: Tensor, shares: Tensor, weights: Mapping[str, Tensor], expert: Expert) -> Tensor:
    """Each token through several experts, summed by share. `x` (num_tokens, d_model), `rows` and `shares` (num_tokens, top_k).

    Shares of equal rows add (two of a token's experts merged into one group): that expert then runs once.
    """
    num_kept = next(iter(weights.values())).shape[0]
    totals = x.new_zeros(x.shape[0], num_kept).scatter_add(1, rows, shares)
    tokens, hit = totals.nonzero(as_tuple=True)
    outputs = apply_experts(x.index_select(0, tokens), hit, weights, expert) * totals[tokens, hit].unsqueeze(1)
    return torch.zeros_like(x).index_add(0, tokens, outputs)


def apply_experts(x: Tensor, rows: Tensor, weights: Mapping[str, Tensor], expert: Expert) -> Tensor:
    """Each token through one expert. `x` (num_tokens, d_model), `rows` (num_tokens,), `weights` (num_kept, width out, width in) each."""
    expert_params = sum(weight[0].numel() for weight in weights.values())
    if expert_params > SMALL_EXPERT_PARAMS:
        return _one_product_an_expert(x, rows, weights, expert)
    if x.shape[0] * expert_params <= GATHER_PARAMS and not torch.is_grad_enabled():
        chosen = {name: weight.index_select(0, rows).to(x.dtype) for name, weight in weights.items()}
        return expert(lambda part, name: torch.bmm(chosen[name], part), x.unsqueeze(2)).squeeze(2)
    return _chunked_product(x, rows, weights, expert)


def _chunked_product(x: Tensor, rows: Tensor, weights: Mapping[str, Tensor], expert: Expert) -> Tensor:
    """Tokens sorted by expert and cut into chunks of one expert each, the last of an expert padded: one batched product for all."""
    num_kept = next(iter(weights.values())).shape[0]
    counts = torch.bincount(rows, minlength=num_kept)
    num_chunks = (counts + CHUNK_TOKENS - 1) // CHUNK_TOKENS
    expert_of_chunk = torch.repeat_interleave(num_chunks)
    order = torch.argsort(rows)
    sorted_rows = rows[order]
    first_place = (num_chunks.cumsum(0) - num_chunks) * CHUNK_TOKENS - (counts.cumsum(0) - counts)
    places = torch.empty_like(rows)
    places[order] = first_place[sorted_rows] + torch.arange(rows.numel(), device=rows.device)
    num_places = expert_of_chunk.numel() * CHUNK_TOKENS
    padded = _Place.apply(x, places, num_places).view(-1, CHUNK_TOKENS, x.shape[1])  # type: ignore[no-untyped-call]
    chosen = {name: weight.index_select(0, expert_of_chunk).to(x.dtype).transpose(1, 2) for name, weight in weights.items()}
    mixed = expert(lambda part, name: torch.bmm(part, chosen[name]), padded)
    return _Take.apply(mixed.view(num_places, -1), places)  # type: ignore[no-untyped-call, no-any-return]


def _one_product_an_expert(x: Tensor, rows: Tensor, weights: Mapping[str, Tensor], expert: Expert) -> Tensor:
    order = torch.argsort(rows)
    hit, counts = torch.unique_consecutive(rows[order], return_counts=True)
    parts = torch.split(x.index_select(0, order), counts.tolist())
    outputs = [
        expert(lambda part, name: linear(part, weights[name][row]), part)  # noqa: B023
        for row, part in zip(hit.tolist(), parts, strict=True)
    ]
    if not outputs:
        return torch.zeros_like(x)
    places = torch.empty_like(order)
    places[order] = torch.arange(order.numel(), device=order.device)
    return _Take.apply(torch.cat(outputs), places)  # type: ignore[no-untyped-call, no-any-return]
