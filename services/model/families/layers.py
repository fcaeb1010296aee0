"""Tensor functions that the forward passes of families share: norm, positions, attention, padding, mixtures of experts.

No state and no checkpoint names here; a family decides which function runs on which weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from services.model.errors import PromptError
from services.model.families.blocked import BlockedStack, product, rectified_product, row_of
from services.model.families.four_bits import FourBitForm, FourBitMatrix
from services.model.families.packed_weights import PackedWeights

Activation = Callable[[Tensor], Tensor]
# Hidden states times the expert's matrix of that name, (..., width in) to (..., width out), and the activation of that, if any.
Product = Callable[[Tensor, str, Activation | None], Tensor]
Expert = Callable[[Product, Tensor], Tensor]  # one expert's function, told by its matrix products; it may not mix tokens

LEAST_SPREAD = 8  # tokens that prompts may differ by and still attend in one call
GATHER_PARAMS = 3 << 16  # most expert weights that may be copied to save a grouped product
GPU_GATHER_PARAMS = 1 << 24  # the same on a GPU, where starting products takes longer than copying


def gelu_new(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Activation] = {"relu": F.relu, "gelu": F.gelu, "gelu_new": gelu_new, "silu": F.silu}


def plain_expert(activation: Activation) -> Expert:
    """`wo act(wi x)`."""
    return lambda product, x: product(product(x, "wi", activation), "wo", None)


def gated_expert(activation: Activation) -> Expert:
    """`wo (act(gate x) * up x)` (Shazeer 2020, GLU variants)."""
    return lambda product, x: product(product(x, "gate", activation) * product(x, "up", None), "wo", None)


def linear(x: Tensor, weight: Tensor | FourBitMatrix, activation: Activation | None = None) -> Tensor:
    """`activation(x @ weight.T)`, the product in the dtype the weight is stored in (bfloat16 at 4 bits); the result is float32.

    But rectified it may stay in that dtype, since rounding it is the same before and after: the next product gets the same bits.
    """
    if isinstance(weight, FourBitMatrix):
        made = weight.product(x.to(torch.bfloat16))
        if activation is F.relu:
            return made.relu_()
    elif weight.is_mkldnn:
        if activation is F.relu:
            return rectified_product(x.to(weight.dtype), weight)
        made = product(x.to(weight.dtype), weight)
    elif weight.is_cuda and weight.dtype != torch.float32 and not torch.is_grad_enabled():
        return _linear_on_gpu(x.to(weight.dtype), weight, activation)
    else:
        made = F.linear(x.to(weight.dtype), weight)
    return made.float() if activation is None else activation(made.float())


def projected(x: Tensor, weight: Tensor) -> Tensor:
    """Queries, keys and values: `linear`, in the dtype that attention is computed in."""
    return F.linear(x.to(weight.dtype), weight) if weight.is_cuda and not torch.is_grad_enabled() else linear(x, weight)


def mixing_dtype(weight: Tensor) -> torch.dtype:
    """In which attention is computed: on a GPU that serves, whose kernels for it are several times faster then, that of the weights."""
    return weight.dtype if weight.is_cuda and not torch.is_grad_enabled() else torch.float32


def _linear_on_gpu(x: Tensor, weight: Tensor, activation: Activation | None) -> Tensor:
    """Sums as they are, of float32, instead of rounded and then made wide again."""
    if activation is F.relu:
        return F.linear(x, weight).relu_()
    made = torch.mm(x.flatten(0, -2), weight.mT, out_dtype=torch.float32).view(*x.shape[:-1], -1)
    return made if activation is None else activation(made)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale without shift or mean (Raffel et al. 2020, §2.1), in float32."""
    if x.is_cuda:
        return F.rms_norm(x, weight.shape, weight.float(), eps)  # one kernel
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
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype), scale=scale, enable_gqa=grouped)
    rows, heads, tokens, width = mixed.shape
    return mixed.transpose(1, 2).reshape(rows, tokens, heads * width)


def plus(x: Tensor, more: Tensor) -> Tensor:
    """Their sum, in the memory of `x` where no gradient asks for what was there."""
    return x + more if torch.is_grad_enabled() else x.add_(more)


def check_rows(rows: Sequence[Sequence[int]]) -> None:
    if any(not row for row in rows):
        raise PromptError("prompt: empty after tokenization; send at least one token")


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids, padded on the right, and which of them are not padding: both (num_rows, longest)."""
    check_rows(rows)
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *([0] * (longest - len(row)))] for row in rows], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    return ids, torch.arange(longest, device=device) < lengths[:, None]


def valid_places(valid: Tensor) -> Tensor | None:
    """Where the valid tokens are among all, row by row; None where all of them are."""
    places = valid.flatten().nonzero().squeeze(1)
    return None if places.numel() == valid.numel() else places


@dataclass(frozen=True, slots=True)
class Padding:
    """Between the tokens of all rows without padding, (num_tokens, width), and some of the rows padded, (num_rows, longest, width)."""

    rows: Tensor
    longest: int
    sources: Tensor  # for each place the token that stands there; at padding any, since nothing may look at it
    tokens: Tensor  # of these rows, among all
    places: Tensor  # of these tokens, among the padded

    @classmethod
    def of(cls, valid: Tensor, rows: Sequence[int]) -> Padding:
        chosen = torch.as_tensor(rows, device=valid.device)
        numbers = (valid.flatten().cumsum(0) - 1).view_as(valid).index_select(0, chosen)
        stands = valid.index_select(0, chosen)
        longest = int(stands.sum(1).max())
        stands, numbers = stands[:, :longest].flatten(), numbers[:, :longest].flatten().clamp(min=0)
        places = stands.nonzero().squeeze(1)
        return cls(chosen, longest, numbers, numbers.index_select(0, places), places)

    def padded(self, x: Tensor) -> Tensor:
        return x.index_select(0, self.sources).view(len(self.rows), self.longest, -1)

    def taken_off(self, x: Tensor) -> Tensor:
        """These rows' tokens alone."""
        return x.flatten(0, 1).index_select(0, self.places)


def of_like_lengths(lengths: Sequence[int]) -> list[list[int]]:
    """Rows in groups of which the longest has few tokens more than the shortest, so that little in them is padding."""
    groups: list[list[int]] = []
    most = 0
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if lengths[row] > most:
            groups.append([])
            most = lengths[row] + max(LEAST_SPREAD, lengths[row] // 4)
        groups[-1].append(row)
    return groups


def taken(x: Tensor, places: Tensor) -> Tensor:
    """Rows of `x`, by whichever is quicker."""
    return x[places] if x.is_cuda else x.index_select(0, places)


def plus_at(x: Tensor, places: Tensor | None, added: Callable[[Tensor], Tensor]) -> Tensor:
    """`x` (rows, tokens, d_model) plus `added`, which is computed for the tokens at `places` alone: (num_places, d_model) to the same."""
    flat = x.reshape(-1, x.shape[-1])
    if places is None:
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


def mixed_experts(x: Tensor, rows: Tensor, shares: Tensor, weights: Mapping[str, Tensor], expert: Expert) -> Tensor:
    """Each token through several experts, summed by share. `x` (num_tokens, d_model), `rows` and `shares` (num_tokens, top_k).

    Shares of equal rows add (two of a token's experts merged into one group): that expert then runs once. On a GPU, which would have to be
    asked how many are left, it runs for each.
    """
    if x.is_cuda:
        return each_choice(x, rows, shares, weights, expert)
    totals = x.new_zeros(x.shape[0], _num_kept(weights)).scatter_add(1, rows, shares)
    hit, tokens = totals.T.nonzero(as_tuple=True)  # in the order of experts
    outputs = _in_order(x.index_select(0, tokens), hit, weights, expert) * totals[tokens, hit].unsqueeze(1)
    return torch.zeros_like(x).index_add(0, tokens, outputs)


def each_choice(x: Tensor, rows: Tensor, shares: Tensor, weights: Mapping[str, Tensor], expert: Expert) -> Tensor:
    """As `mixed_experts`, without adding shares first."""
    num_tokens, top_k = rows.shape
    outputs = apply_experts(x.repeat_interleave(top_k, 0), rows.flatten(), weights, expert)
    return (outputs.view(num_tokens, top_k, -1) * shares.unsqueeze(2)).sum(1)


def apply_experts(x: Tensor, rows: Tensor, weights: Mapping[str, Tensor], expert: Expert) -> Tensor:
    """Each token through one expert. `x` (num_tokens, d_model), `rows` (num_tokens,), `weights` (num_kept, width out, width in) each."""
    if isinstance(weights, PackedWeights):
        return _packed(x, rows, weights, expert)
    if _are_few(x, weights):
        return _gathered(x, rows, weights, expert)
    order = torch.argsort(rows)
    outputs = _in_order(taken(x, order), rows[order], weights, expert)
    return torch.empty_like(outputs).index_copy_(0, order, outputs)


def _in_order(x: Tensor, rows: Tensor, weights: Mapping[str, Tensor], expert: Expert) -> Tensor:
    """As `apply_experts`, with `rows` ascending."""
    if isinstance(weights, PackedWeights):
        return _packed(x, rows, weights, expert)
    if _are_few(x, weights):
        return _gathered(x, rows, weights, expert)
    if not _are_blocked(weights) and all(_has_grouped_product(weight) for weight in weights.values()):
        ends = torch.searchsorted(rows, torch.arange(_num_kept(weights), device=rows.device), right=True).to(torch.int32)

        def grouped(part: Tensor, name: str, activation: Activation | None) -> Tensor:
            made = F.grouped_mm(part.to(weights[name].dtype), weights[name].mT, offs=ends)
            if activation is F.relu:
                return made.relu()  # rounding it is the same before and after
            return made.to(x.dtype) if activation is None else activation(made.to(x.dtype))

        return expert(grouped, x)
    counts = torch.bincount(rows, minlength=_num_kept(weights))
    dtype = next(iter(weights.values())).dtype
    return _one_product_an_expert(x.to(dtype), counts, lambda name, row: row_of(weights[name], row), expert)


def _packed(x: Tensor, rows: Tensor, weights: PackedWeights, expert: Expert) -> Tensor:
    """As `apply_experts`: a form at a time, unless laid out its experts unpacked for the tokens that hit them. Tokens of none get zeros."""
    outputs = torch.zeros_like(x)
    for part in weights.tokens(rows):
        own = x.index_select(0, part.places)
        if isinstance(part.form, FourBitForm):
            made = _one_product_an_expert(own.to(torch.bfloat16), torch.bincount(part.rows), part.form.matrix, expert)
        elif len(part.rows) * part.form.num_weights <= GATHER_PARAMS:
            made = _multiplied(own, part.form.unpacked(part.rows), expert)
        else:
            hit, local = torch.unique_consecutive(part.rows, return_inverse=True)
            made = _in_order(own, local, part.form.unpacked(hit), expert)
        outputs.index_copy_(0, part.places, made)
    return outputs


def _are_few(x: Tensor, weights: Mapping[str, Tensor]) -> bool:
    """Whether copying each token's expert costs less than starting a product an expert, and no gradient asks for more."""
    if _are_blocked(weights):
        return False
    return _is_few(x.shape[0], weights) and not torch.is_grad_enabled()


def _is_few(num_tokens: int, weights: Mapping[str, Tensor]) -> bool:
    some = next(iter(weights.values()))
    return num_tokens * sum(weight[0].numel() for weight in weights.values()) <= (GPU_GATHER_PARAMS if some.is_cuda else GATHER_PARAMS)


def can_replay(num_tokens: int, weights: Mapping[str, Tensor]) -> bool:
    """Whether `apply_experts` of so many tokens asks a GPU nothing, so that it can be recorded (`replays.py`)."""
    if isinstance(weights, PackedWeights) or not all(weight.is_cuda for weight in weights.values()):
        return False
    return _is_few(num_tokens, weights) or all(_is_grouped_on_device(weight) for weight in weights.values())


def _is_grouped_on_device(weight: Tensor) -> bool:
    """Whether torch has one kernel for `grouped_mm` of these; for others it asks where groups end and multiplies one after the other."""
    return weight.dtype == torch.bfloat16 and _has_grouped_product(weight) and torch.cuda.get_device_capability(weight.device) >= (9, 0)


def _gathered(x: Tensor, rows: Tensor, weights: Mapping[str, Tensor], expert: Expert) -> Tensor:
    return _multiplied(x, {name: weight.index_select(0, rows).to(x.dtype) for name, weight in weights.items()}, expert)


def _multiplied(x: Tensor, chosen: Mapping[str, Tensor], expert: Expert) -> Tensor:
    """Each token through an expert of its own, (num_tokens, width out, width in) each."""

    def one_by_one(part: Tensor, name: str, activation: Activation | None) -> Tensor:
        made = torch.bmm(chosen[name], part)
        return made if activation is None else activation(made)

    return expert(one_by_one, x.unsqueeze(2)).squeeze(2)


def _has_grouped_product(weight: Tensor) -> bool:
    """What `grouped_mm` asks for: rows of whole 16 bytes, and on CUDA compute capability 8."""
    if any(width * weight.element_size() % 16 for width in weight.shape[1:]):
        return False
    return weight.device.type != "cuda" or torch.cuda.get_device_capability(weight.device) >= (8, 0)


def _one_product_an_expert(x: Tensor, counts: Tensor, matrix_of: Callable[[str, int], Tensor | FourBitMatrix], expert: Expert) -> Tensor:
    """As `_in_order`; `counts` tokens each of as many experts, `matrix_of` a name and one of them."""
    parts = torch.split(x, counts.tolist())
    outputs = [
        expert(lambda part, name, activation: linear(part, matrix_of(name, row), activation), part)  # noqa: B023
        for row, part in enumerate(parts)
        if part.shape[0]
    ]
    return torch.cat(outputs) if outputs else torch.zeros_like(x, dtype=torch.float32)


def _are_blocked(weights: Mapping[str, Tensor]) -> bool:
    return any(isinstance(weight, BlockedStack) for weight in weights.values())


def _num_kept(weights: Mapping[str, Tensor]) -> int:
    """Rows that tokens may be sent to; packed experts have one more, of nothing."""
    return weights.num_kept + 1 if isinstance(weights, PackedWeights) else int(next(iter(weights.values())).shape[0])
