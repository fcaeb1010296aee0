"""Decoder-only mixtures of experts: one forward pass over pre-norm blocks with rotary positions, for serving, merging and training.

Every family of this kind is this model with another config and other names. Padding never reaches a router or an expert. Weights keep
the dtype they were read in; products run in it, everything between them in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from services.model.device import finished
from services.model.errors import CheckpointError
from services.model.families.base import Cache, ExpertStack, ModelShape, MoeLayer, Recorder
from services.model.families.blocked import blocked, widened
from services.model.families.decoder_cache import FEWEST_CACHED_TOKENS, DecoderCache
from services.model.families.decoder_config import NO_WINDOW, DecoderConfig, Fields
from services.model.families.decoder_weights import USUAL_NAMES, Naming, check_tensors, read_tensors
from services.model.families.layers import (
    ACTIVATIONS,
    Expert,
    attend,
    check_rows,
    gated_expert,
    grown,
    linear,
    mixed_experts,
    mixing_dtype,
    padded,
    plus_at,
    rms_norm,
    rotate,
    slot_index,
    split_heads,
    taken,
    valid_places,
)
from services.model.families.replays import MOST_PACKED, Packed, Replays, packed_rows, step_rows
from services.model.families.tensors import TensorSource, read_json

Keep = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]  # block, its new keys and values; all keys and values to look at


class DecoderModel:
    """A `MoeModel`. Sharing is by reference: `with_experts` gives a second model over the same weights."""

    def __init__(self, family: str, config: DecoderConfig, tensors: Mapping[str, Tensor], experts: Sequence[ExpertStack]) -> None:
        self._family = family
        self._config = config
        self._tensors = dict(tensors)
        self._experts = list(experts)
        self._sparse = [layer for layer in range(config.num_layers) if config.sparse[layer]]
        self._blocks = [_block(tensors, layer) for layer in range(config.num_layers)]
        self._expert = gated_expert(ACTIVATIONS[config.activation])
        exponents = torch.arange(0, config.d_head, 2, dtype=torch.int64, device=self.device).float() / config.d_head
        self._frequencies = 1.0 / (config.rope_theta**exponents)
        self.shape = ModelShape(
            family,
            tuple(MoeLayer(f"layers.{n}", config.num_experts, config.top_k, 3 * config.d_model * config.d_ff) for n in self._sparse),
            config.d_model,
            config.vocab_size,
            sum(tensor.numel() for tensor in tensors.values()),
            config.eos_token_ids,
            continues_prompt=True,
        )

    @property
    def device(self) -> torch.device:
        return self._tensors["embedding"].device

    @property
    def experts(self) -> Sequence[ExpertStack]:
        return self._experts

    @property
    def routers(self) -> Sequence[Tensor]:
        return [self._blocks[layer]["router"].float() for layer in self._sparse]

    @property
    def expert(self) -> Expert:
        return self._expert

    def with_experts(self, experts: Sequence[ExpertStack]) -> DecoderModel:
        if len(experts) != len(self._sparse):
            raise ValueError(f"experts: {len(experts)} stacks for {len(self._sparse)} MoE layers")
        return DecoderModel(self._family, self._config, self._tensors, experts)

    def blocked(self) -> DecoderModel:
        """The embedding stays as it is, whose rows are read; routers multiply in float32."""

        def laid_out(name: str, tensor: Tensor) -> Tensor:
            kind = name.rpartition(".")[2]
            if kind == "embedding":
                return tensor
            return widened(tensor) if tensor.dim() != 2 or kind == "router" else blocked(tensor)

        tensors = {name: laid_out(name, tensor) for name, tensor in self._tensors.items()}
        return DecoderModel(self._family, self._config, tensors, [stack.blocked() for stack in self._experts])

    def parameters(self) -> Mapping[str, Tensor]:
        named = dict(self._tensors)
        for layer, stack in zip(self._sparse, self._experts, strict=True):
            named |= {f"layers.{layer}.experts.{matrix}": tensor for matrix, tensor in stack.weights.items()}
        return named

    # Serving

    def new_cache(self, num_slots: int) -> DecoderCache:
        config = self._config
        size = (config.num_layers, 2, num_slots, config.num_key_heads, FEWEST_CACHED_TOKENS, config.d_head)
        with torch.no_grad():
            kept = torch.zeros(size, device=self.device, dtype=mixing_dtype(self._tensors["embedding"]))
        return DecoderCache(num_slots, kept, [0] * num_slots, [0] * num_slots, Replays(self.device, self._experts))

    def prefill(self, cache: Cache, slots: Sequence[int], prompts: Sequence[Sequence[int]], recorder: Recorder | None = None) -> None:
        """Reads all but the last token of each prompt; the first step reads that one and gives the first token of the answer."""
        assert isinstance(cache, DecoderCache)
        if not slots:
            return
        check_rows(prompts)
        for slot in slots:
            cache.positions[slot] = 0
        self._read(cache, slots, [prompt[:-1] for prompt in prompts], recorder)
        finished(self.device)
        for slot, prompt in zip(slots, prompts, strict=True):
            cache.last_tokens[slot] = prompt[-1]

    def step(self, cache: Cache, slots: Sequence[int], recorder: Recorder | None = None) -> list[int]:
        assert isinstance(cache, DecoderCache)
        if not slots:
            return []
        with torch.inference_mode():
            tokens = self._next_tokens(cache, slots, recorder)
        for slot, token in zip(slots, tokens, strict=True):
            cache.last_tokens[slot] = token
        return tokens

    def _next_tokens(self, cache: DecoderCache, slots: Sequence[int], recorder: Recorder | None) -> list[int]:
        count = step_rows(slots, cache.num_slots)
        if cache.replays.takes(count * self._config.top_k):
            return self._replayed(cache, slots, count, recorder)
        hidden = self._advance(cache, slots, [[cache.last_tokens[slot]] for slot in slots], recorder)
        tokens: list[int] = self._best_tokens(hidden).tolist()
        return tokens

    def _replayed(self, cache: DecoderCache, slots: Sequence[int], count: int, recorder: Recorder | None) -> list[int]:
        columns, num_keys = cache.columns(slots, count), cache.length

        def body(inputs: Tensor, collected: Recorder) -> Tensor:
            ids, positions, rows = (column.unsqueeze(1) for column in inputs.unbind(0))
            places = torch.arange(count, device=self.device).unsqueeze(1)
            keep = self._keeping(cache, slice(0, count), places, positions, num_keys)
            biases = self._causal_biases(positions, torch.arange(num_keys, device=self.device))
            return self._best_tokens(self._forward(ids, positions, None, biases, keep, collected, rows.squeeze(1)))

        tokens: list[int] = cache.replays.run(("step", count), body, columns, slots, (num_keys,), recorder).tolist()
        for slot in slots:
            cache.positions[slot] += 1
        return tokens

    def force(self, cache: Cache, slot: int, tokens: Sequence[int]) -> None:
        assert isinstance(cache, DecoderCache)
        if tokens:
            self._read(cache, [slot], [[cache.last_tokens[slot], *tokens[:-1]]], None)
            cache.last_tokens[slot] = tokens[-1]

    def _read(self, cache: DecoderCache, slots: Sequence[int], rows: Sequence[Sequence[int]], recorder: Recorder | None) -> None:
        """Tokens into slots, the rows without any left out."""
        filled = [(slot, row) for slot, row in zip(slots, rows, strict=True) if row]
        if not filled:
            return
        slots, rows = [slot for slot, _ in filled], [row for _, row in filled]
        num_tokens = sum(map(len, rows))
        is_new = not any(cache.positions[slot] for slot in slots)
        with torch.inference_mode():
            if is_new and num_tokens <= MOST_PACKED and cache.replays.takes(packed_rows(num_tokens) * self._config.top_k):
                self._read_replayed(cache, slots, rows, recorder)
            else:
                self._advance(cache, slots, rows, recorder)

    def _read_replayed(self, cache: DecoderCache, slots: Sequence[int], rows: Sequence[Sequence[int]], recorder: Recorder | None) -> None:
        packed = Packed.of(rows, slots)
        cache.kept = grown(cache.kept, packed.longest)

        def body(inputs: Tensor, collected: Recorder) -> Tensor:
            ids, positions, owners, places, experts_of = inputs.unbind(0)

            def keep(block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
                cache.kept[block][:, places, :, positions] = torch.cat([keys, values]).permute(2, 0, 1, 3)
                return keys, values

            biases = self._causal_biases(positions.unsqueeze(0), positions, owners)
            self._forward(ids.unsqueeze(0), positions.unsqueeze(0), None, biases, keep, collected, experts_of)
            return ids

        cache.replays.run(("prefill", packed.num_rows), body, packed.columns, range(packed.num_tokens), (cache.length,), recorder)
        for slot, row in zip(slots, rows, strict=True):
            cache.positions[slot] = len(row)

    def _advance(self, cache: DecoderCache, slots: Sequence[int], rows: Sequence[Sequence[int]], recorder: Recorder | None) -> Tensor:
        """Reads more tokens of each slot, padded on the right: what lands beyond a slot's position is masked until it is written over.

        The hidden states (num_rows, longest, d_model) after the final norm.
        """
        ids, valid = padded(rows, self.device)
        starts = torch.tensor([cache.positions[slot] for slot in slots], device=self.device)
        positions = starts[:, None] + torch.arange(ids.shape[1], device=self.device)
        num_keys = max(cache.positions[slot] for slot in slots) + ids.shape[1]
        cache.kept = grown(cache.kept, num_keys)
        chosen, places = slot_index(slots, self.device), torch.as_tensor(slots, device=self.device)[:, None]

        keep = self._keeping(cache, chosen, places, positions, num_keys)
        biases = self._causal_biases(positions, torch.arange(num_keys, device=self.device))
        hidden = self._forward(ids, positions, valid_places(valid), biases, keep, recorder)
        for slot, row in zip(slots, rows, strict=True):
            cache.positions[slot] += len(row)
        return hidden

    def _keeping(self, cache: DecoderCache, chosen: slice | Tensor, places: Tensor, positions: Tensor, num_keys: int) -> Keep:
        """Of the slots `chosen`, whose numbers `places` (rows, 1) are too; new tokens are at `positions` (rows, tokens)."""

        def keep(block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            cache.kept[block, 0, places, :, positions] = keys.transpose(1, 2)
            cache.kept[block, 1, places, :, positions] = values.transpose(1, 2)
            every_key, every_value = cache.kept[block, :, chosen, :, :num_keys].unbind(0)
            return every_key, every_value

        return keep

    # Whole sequences

    def teacher_forced(
        self, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], recorder: Recorder | None = None
    ) -> Tensor:
        check_rows(prompts)
        ids, valid = padded([[*prompt, *target[:-1]] for prompt, target in zip(prompts, targets, strict=True)], self.device)
        num_tokens = ids.shape[1]
        positions = torch.arange(num_tokens, device=self.device).expand_as(ids)
        biases = self._causal_biases(positions, torch.arange(num_tokens, device=self.device))
        hidden = self._forward(ids, positions, valid_places(valid), biases, lambda block, keys, values: (keys, values), recorder)
        firsts = torch.tensor([len(prompt) - 1 for prompt in prompts], device=self.device)
        span = torch.arange(max(map(len, targets)), device=self.device)
        places = (firsts[:, None] + span).clamp(max=num_tokens - 1)
        rows = torch.arange(len(prompts), device=self.device)[:, None]
        return self._logits(hidden[rows, places])

    # Parts

    def _forward(
        self,
        ids: Tensor,
        positions: Tensor,
        places: Tensor | None,
        biases: Mapping[int, Tensor],
        keep: Keep,
        recorder: Recorder | None,
        sources: Tensor | None = None,
    ) -> Tensor:
        """`ids`, `positions` (rows, tokens); `places` of tokens without padding, none where all are; `biases` by window.

        With `sources`, tokens take the experts of these, of all rows. (rows, tokens, d_model), normalised.
        """
        config = self._config
        angles = positions[:, None, :, None].float() * self._frequencies.repeat(2)
        cos, sin = angles.cos(), angles.sin()
        x = F.embedding(ids, self._tensors["embedding"]).float()
        dtype = mixing_dtype(self._tensors["embedding"])
        moe_layer = 0
        for number, block in enumerate(self._blocks):
            query, key, value = self._query_key_value(block, rms_norm(x, block["attention_norm"], config.eps))
            query, key, value = (part.to(dtype) for part in (rotate(query, cos, sin), rotate(key, cos, sin), value))
            keys, values = keep(number, key, value)
            mixed = attend(query, keys, values, biases[config.windows[number]], config.d_head**-0.5)
            x = x + _affine(mixed, block["out"], block.get("out_bias"))
            x = plus_at(x, places, self._feed_forward(block, moe_layer, recorder, sources))
            moe_layer += config.sparse[number]
        return rms_norm(x, self._tensors["final_norm"], config.eps)

    def _causal_biases(self, positions: Tensor, keys: Tensor, owners: Tensor | None = None) -> dict[int, Tensor]:
        """For each width of window: 0 for keys (at positions `keys`) that a position may look at and -inf for the others. With `owners`
        of both, which are then the same tokens, each looks at its own. (rows, 1, tokens, keys) each."""
        back = positions[:, None, :, None] - keys
        apart = back < 0 if owners is None else (back < 0) | (owners != owners[:, None])
        hidden = {w: apart if w == NO_WINDOW else apart | (back >= w) for w in set(self._config.windows)}
        dtype = mixing_dtype(self._tensors["embedding"])
        return {w: torch.zeros(at.shape, device=at.device, dtype=dtype).masked_fill(at, float("-inf")) for w, at in hidden.items()}

    def _query_key_value(self, block: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, heads, tokens, d_head) each, before rotation."""
        config = self._config
        fused = _affine(x, block["into"], block.get("into_bias"))
        query, key, value = fused.split([config.query_width, config.key_width, config.key_width], -1)  # type: ignore[no-untyped-call]
        return (
            self._heads(query, config.num_heads, block.get("query_norm")),
            self._heads(key, config.num_key_heads, block.get("key_norm")),
            self._heads(value, config.num_key_heads, None),
        )

    def _heads(self, x: Tensor, num_heads: int, norm: Tensor | None) -> Tensor:
        config = self._config
        if norm is not None and config.query_norm == "whole":
            x = rms_norm(x, norm, config.eps)
        if config.clip is not None:
            x = x.clamp(-config.clip, config.clip)
        heads = split_heads(x, num_heads)
        return rms_norm(heads, norm, config.eps) if norm is not None and config.query_norm == "head" else heads

    def _feed_forward(
        self, block: Mapping[str, Tensor], moe_layer: int, recorder: Recorder | None, sources: Tensor | None
    ) -> Callable[[Tensor], Tensor]:
        """What the block adds to tokens (num_tokens, d_model) without padding."""

        def added(tokens: Tensor) -> Tensor:
            x = rms_norm(tokens if sources is None else taken(tokens, sources), block["norm"], self._config.eps)
            if "router" not in block:
                return self._expert(lambda part, name, activation: linear(part, block[name], activation), x)
            mixed = self._mixture(block["router"], moe_layer, x, recorder)
            if "shared.share" not in block:
                return mixed
            shared = self._expert(lambda part, name, activation: linear(part, block[f"shared.{name}"], activation), x)
            return mixed + linear(x, block["shared.share"]).sigmoid() * shared

        return added

    def _mixture(self, router: Tensor, moe_layer: int, x: Tensor, recorder: Recorder | None) -> Tensor:
        logits = F.linear(x, router.float())
        shares, chosen = logits.softmax(-1).topk(self._config.top_k, dim=-1)
        if self._config.normalise_shares:
            shares = shares / shares.sum(-1, keepdim=True)
        if recorder is not None:
            recorder.record(moe_layer, chosen, logits, x, shares)
        stack = self._experts[moe_layer]
        return mixed_experts(x, stack.index_map[chosen], shares, stack.weights, self._expert)

    def _best_tokens(self, hidden: Tensor) -> Tensor:
        """Of rows of one token."""
        return self._logits(hidden[:, 0]).argmax(-1)

    def _logits(self, hidden: Tensor) -> Tensor:
        return linear(hidden, self._tensors["embedding" if self._config.tied else "head"])


def _block(tensors: Mapping[str, Tensor], layer: int) -> dict[str, Tensor]:
    prefix = f"layers.{layer}."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return linear(x, weight) if bias is None else linear(x, weight) + bias


@dataclass(frozen=True, slots=True)
class DecoderFamily:
    """The `Family` of checkpoints whose `model_type` is its name; what differs between families is the config and the names."""

    name: str
    config: Callable[[Fields], DecoderConfig]
    naming: Naming = USUAL_NAMES

    def accepts(self, config: Mapping[str, object]) -> bool:
        return config.get("model_type") == self.name

    def read(self, directory: Path, dtype: torch.dtype, device: torch.device, experts_dir: Path | None = None) -> DecoderModel:
        path = directory / "config.json"
        config = self._checked(Fields(read_json(path), str(path)))
        tensors, experts = read_tensors(config, self.naming, TensorSource(directory, dtype, device, experts_dir))
        return DecoderModel(self.name, config, tensors, experts)

    def assemble(self, config: Mapping[str, object], tensors: Mapping[str, Tensor], experts: Sequence[ExpertStack]) -> DecoderModel:
        read = self._checked(Fields(config, "config.json"))
        check_tensors(read, tensors, experts)
        return DecoderModel(self.name, read, tensors, experts)

    def _checked(self, fields: Fields) -> DecoderConfig:
        config = self.config(fields)
        if config.activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise CheckpointError(f"{fields.source}: hidden_act {config.activation!r} is not supported; known are {known}")
        if not any(config.sparse):
            raise CheckpointError(f"{fields.source}: no block has experts; use a mixture of experts")
        return config
