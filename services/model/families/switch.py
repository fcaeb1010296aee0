"""Switch Transformers (Fedus et al. 2022): our own forward pass over a transformers checkpoint, for serving, merging and training.

Padding never reaches a router or an expert. There is no expert capacity: it is a device of training, and a token that overflowed it
would be answered by no expert. Weights keep the dtype they were read in; products run in it, everything between them in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from services.model.device import finished
from services.model.errors import CheckpointError
from services.model.families.base import Cache, ExpertStack, ModelShape, MoeLayer, Recorder
from services.model.families.layers import (
    ACTIVATIONS,
    Expert,
    Padding,
    apply_experts,
    attend,
    grown,
    linear,
    mixing_dtype,
    of_like_lengths,
    padded,
    plain_expert,
    plus,
    plus_at,
    position_buckets,
    projected,
    rms_norm,
    split_heads,
    taken,
    valid_places,
)
from services.model.families.replays import MOST_PACKED, Packed, Replays, packed_rows, step_rows
from services.model.families.switch_cache import FEWEST_CACHED_TOKENS, Step, SwitchCache
from services.model.families.switch_parts import SwitchParts
from services.model.families.switch_weights import (
    Attention,
    Block,
    Stack,
    SwitchConfig,
    SwitchReader,
    SwitchWeights,
    as_written,
    config_of,
    read_config,
    write_weights,
)
from services.model.families.tensors import TensorSource


class SwitchModel:
    """A `MoeModel`. Sharing is by reference: `with_experts` gives a second model over the same weights."""

    def __init__(self, config: SwitchConfig, weights: SwitchWeights, experts: Sequence[ExpertStack], layer_names: Sequence[str]) -> None:
        self._config = config
        self._weights = weights
        self._experts = list(experts)
        self._layer_names = tuple(layer_names)
        self._activation = ACTIVATIONS[config.dense_act_fn]
        self._expert = plain_expert(self._activation)
        self.shape = ModelShape(
            "switch",
            tuple(MoeLayer(name, config.num_experts, 1, 2 * config.d_model * config.d_ff) for name in layer_names),
            config.d_model,
            config.vocab_size,
            sum(tensor.numel() for _, tensor in weights.named()),
            (config.eos_token_id,),
        )

    @property
    def device(self) -> torch.device:
        return self._weights.shared.device

    @property
    def experts(self) -> Sequence[ExpertStack]:
        return self._experts

    @property
    def routers(self) -> Sequence[Tensor]:
        blocks = (*self._weights.encoder.blocks, *self._weights.decoder.blocks)
        return [block.router.weight.float() for block in blocks if block.router is not None]

    @property
    def expert(self) -> Expert:
        return self._expert

    def with_experts(self, experts: Sequence[ExpertStack]) -> SwitchModel:
        if len(experts) != len(self._layer_names):
            raise ValueError(f"experts: {len(experts)} stacks for {len(self._layer_names)} MoE layers")
        return SwitchModel(self._config, self._weights, experts, self._layer_names)

    def blocked(self) -> SwitchModel:
        return SwitchModel(self._config, self._weights.blocked(), [stack.blocked() for stack in self._experts], self._layer_names)

    def parameters(self) -> Mapping[str, Tensor]:
        named = dict(self._weights.named())
        for name, stack in zip(self._layer_names, self._experts, strict=True):
            named |= {f"{name}.experts.{matrix}": tensor for matrix, tensor in stack.weights.items()}
        return named

    def write(self, path: Path) -> None:
        """The weights as one safetensors file under transformers' names. Experts must be unmerged."""
        self._check_unmerged()
        write_weights(self._weights, self._experts, path)

    def as_written(self) -> dict[str, Tensor]:
        """The same by name, sharing memory with this model."""
        self._check_unmerged()
        return as_written(self._weights, self._experts)

    def _check_unmerged(self) -> None:
        if any(
            stack.is_packed or stack.num_kept != layer.num_experts for stack, layer in zip(self._experts, self.shape.layers, strict=True)
        ):
            raise ValueError("write: a merged model has no transformers form; write its base model and its plan")

    # Serving

    def new_cache(self, num_slots: int) -> SwitchCache:
        config = self._config
        size = (config.num_decoder_layers, 2, num_slots, config.num_heads, FEWEST_CACHED_TOKENS, config.d_kv)
        with torch.no_grad():
            own, cross = (torch.zeros(size, device=self.device, dtype=mixing_dtype(self._weights.shared)) for _ in range(2))
        return SwitchCache(
            num_slots,
            own,
            cross,
            [0] * num_slots,
            [config.decoder_start_token_id] * num_slots,
            [0] * num_slots,
            Replays(self.device, self._experts),
        )

    def prefill(self, cache: Cache, slots: Sequence[int], prompts: Sequence[Sequence[int]], recorder: Recorder | None = None) -> None:
        assert isinstance(cache, SwitchCache)
        if not slots:
            return
        num_tokens = sum(map(len, prompts))
        with torch.inference_mode():
            if num_tokens <= MOST_PACKED and cache.replays.takes(packed_rows(num_tokens)):
                self._read_replayed(cache, slots, prompts, recorder)
            else:
                self._read(cache, slots, prompts, recorder)
        finished(self.device)
        cache.begun(slots, prompts, self._config.decoder_start_token_id)

    def _read(self, cache: SwitchCache, slots: Sequence[int], prompts: Sequence[Sequence[int]], recorder: Recorder | None) -> None:
        ids, valid = padded(prompts, self.device)
        encoded = self._encode(ids, valid, recorder)
        cache.cross = grown(cache.cross, ids.shape[1])
        rows, places = valid.nonzero(as_tuple=True)
        self._keep_cross(cache, encoded, torch.as_tensor(slots, device=self.device)[rows], places)

    def _read_replayed(self, cache: SwitchCache, slots: Sequence[int], prompts: Sequence[Sequence[int]], recorder: Recorder | None) -> None:
        packed = Packed.of(prompts, slots)
        cache.cross = grown(cache.cross, packed.longest)

        def body(inputs: Tensor, collected: Recorder) -> Tensor:
            ids, positions, owners, places, experts_of = inputs.unbind(0)
            encoded = self._encode_packed(ids, positions, owners, experts_of, collected)
            self._keep_cross(cache, encoded, places, positions)
            return ids

        cache.replays.run(("prefill", packed.num_rows), body, packed.columns, range(packed.num_tokens), cache.lengths, recorder)

    def _keep_cross(self, cache: SwitchCache, encoded: Tensor, slots: Tensor, positions: Tensor) -> None:
        """Keys and values of prompt tokens (num_tokens, d_model), each of a slot and a position."""
        for index, block in enumerate(self._weights.decoder.blocks):
            cache.cross[index][:, slots, :, positions] = self._cross_keys(block, encoded)

    def step(self, cache: Cache, slots: Sequence[int], recorder: Recorder | None = None) -> list[int]:
        assert isinstance(cache, SwitchCache)
        if not slots:
            return []
        with torch.inference_mode():
            tokens = self._next_tokens(cache, slots, recorder)
        cache.emitted(slots, tokens)
        return tokens

    def _next_tokens(self, cache: SwitchCache, slots: Sequence[int], recorder: Recorder | None) -> list[int]:
        count = step_rows(slots, cache.num_slots)
        if cache.replays.takes(count):
            return self._replayed(cache, slots, count, recorder)
        tokens: list[int] = self._best_tokens(self._advance(cache, slots, recorder)).tolist()
        return tokens

    def _replayed(self, cache: SwitchCache, slots: Sequence[int], count: int, recorder: Recorder | None) -> list[int]:
        columns, lengths = cache.columns(slots, count), cache.lengths

        def body(inputs: Tensor, collected: Recorder) -> Tensor:
            return self._best_tokens(self._decoded(cache, Step.recorded(inputs, lengths), collected))

        found: list[int] = cache.replays.run(("step", count), body, columns, slots, lengths, recorder).tolist()
        return found

    def force(self, cache: Cache, slot: int, tokens: Sequence[int]) -> None:
        assert isinstance(cache, SwitchCache)
        with torch.inference_mode():
            for token in tokens:
                self._advance(cache, [slot], None)
                cache.emitted([slot], [token])

    def _advance(self, cache: SwitchCache, slots: Sequence[int], recorder: Recorder | None) -> Tensor:
        """Feed each slot's last token through the decoder; the hidden states (num_slots_given, d_model) after the final norm."""
        return self._decoded(cache, cache.next_step(slots), recorder)

    def _decoded(self, cache: SwitchCache, step: Step, recorder: Recorder | None) -> Tensor:
        config, decoder, count = self._config, self._weights.decoder, len(step.tokens)
        dtype = mixing_dtype(self._weights.shared)
        own_bias = self._step_bias(step.positions, step.num_keys).to(dtype)
        cross_bias = _padding_bias(torch.arange(step.num_prompt_keys, device=self.device) < step.prompt_lengths[:, None]).to(dtype)
        x = F.embedding(step.tokens, decoder.embedding).float()
        for index, block in enumerate(decoder.blocks):
            own, cross = block.self_attention, block.cross_attention
            assert cross is not None
            assert cross.query is not None
            fused = projected(rms_norm(x, own.norm, config.layer_norm_epsilon), own.into)
            fused = fused.view(count, 3, config.num_heads, config.d_kv)
            query = fused[:, 0]
            cache.own[index][:, step.rows, :, step.positions] = fused[:, 1:]
            keys, values = cache.own[index, :, step.chosen, :, : step.num_keys].unbind(0)
            x = plus(x, linear(attend(query.unsqueeze(2), keys, values, own_bias).squeeze(1), own.out))
            query = projected(rms_norm(x, cross.norm, config.layer_norm_epsilon), cross.query).view(count, config.num_heads, 1, config.d_kv)
            keys, values = cache.cross[index, :, step.chosen, :, : step.num_prompt_keys].unbind(0)
            x = plus(x, linear(attend(query, keys, values, cross_bias).squeeze(1), cross.out))
            of = x if step.sources is None or block.router is None else taken(x, step.sources)
            x = plus(x, self._feed_forward(block, rms_norm(of, block.norm, config.layer_norm_epsilon), recorder))
        return rms_norm(x, decoder.final_norm, config.layer_norm_epsilon)

    def _step_bias(self, positions: Tensor, num_keys: int) -> Tensor:
        """Position bias of one new token a slot; keys past the slot's position are masked. (rows, num_heads, 1, num_keys)."""
        relative = torch.arange(num_keys, device=self.device) - positions[:, None]
        bias = self._position_bias(self._weights.decoder, relative, bidirectional=False).transpose(1, 2)
        return bias.masked_fill(relative[:, None] > 0, float("-inf")).unsqueeze(2)

    # Whole sequences

    def teacher_forced(
        self, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], recorder: Recorder | None = None
    ) -> Tensor:
        ids, valid = padded(prompts, self.device)
        encoded = self._encode(ids, valid, recorder)
        start = self._config.decoder_start_token_id
        inputs, target_valid = padded([[start, *target[:-1]] for target in targets], self.device)
        return self._logits(self._decode(inputs, target_valid, encoded, valid, recorder))

    def _encode(self, ids: Tensor, valid: Tensor, recorder: Recorder | None) -> Tensor:
        """(num_tokens, d_model), tokens without padding: only attention sees rows of equal length."""
        stack = self._weights.encoder
        span = torch.arange(ids.shape[1], device=self.device)
        bias = self._position_bias(stack, span - span[:, None], bidirectional=True).permute(2, 0, 1) + _padding_bias(valid)
        # Starting a call costs a GPU more than padding does.
        alike = [list(range(len(ids)))] if ids.is_cuda else of_like_lengths(valid.sum(1).tolist())
        groups = [Padding.of(valid, rows) for rows in alike]
        biases = [bias[group.rows, :, : group.longest, : group.longest] for group in groups]
        return self._encoded(ids[valid], lambda attention, fused: self._attended(attention, fused, groups, biases), recorder)

    def _encode_packed(self, ids: Tensor, positions: Tensor, owners: Tensor, sources: Tensor, recorder: Recorder | None) -> Tensor:
        """The same of tokens of which each attends to those with its owner; their experts are those of the tokens `sources`."""
        config, count = self._config, len(ids)
        table = self._weights.encoder.position_bias.mT.to(mixing_dtype(self._weights.shared))
        bias = table[:, self._buckets(positions - positions[:, None], bidirectional=True)].unsqueeze(0)
        bias.masked_fill_(owners != owners[:, None], float("-inf"))

        def attended(attention: Attention, fused: Tensor) -> Tensor:
            query, key, value = fused.view(1, count, 3, config.num_heads, config.d_kv).permute(2, 0, 3, 1, 4).unbind(0)
            return attend(query, key, value, bias).squeeze(0)

        return self._encoded(ids, attended, recorder, sources)

    def _encoded(
        self, ids: Tensor, attended: Callable[[Attention, Tensor], Tensor], recorder: Recorder | None, sources: Tensor | None = None
    ) -> Tensor:
        """`attended` mixes the tokens' queries, keys and values, (num_tokens, 3 * inner) to (num_tokens, inner)."""
        stack, eps = self._weights.encoder, self._config.layer_norm_epsilon
        x = F.embedding(ids, stack.embedding).float()
        for block in stack.blocks:
            attention = block.self_attention
            x = plus(x, linear(attended(attention, projected(rms_norm(x, attention.norm, eps), attention.into)), attention.out))
            of = x if sources is None or block.router is None else taken(x, sources)
            x = plus(x, self._feed_forward(block, rms_norm(of, block.norm, eps), recorder))
        return rms_norm(x, stack.final_norm, eps)

    def _attended(self, attention: Attention, fused: Tensor, groups: Sequence[Padding], biases: Sequence[Tensor]) -> Tensor:
        """Self-attention of tokens without padding, which is there only while they attend to each other."""
        mixed = torch.empty_like(fused[:, : attention.out.shape[1]])
        for group, bias in zip(groups, biases, strict=True):
            query, key, value = (split_heads(part, self._config.num_heads) for part in group.padded(fused).chunk(3, -1))
            mixed = mixed.index_copy_(0, group.tokens, group.taken_off(attend(query, key, value, bias)))
        return mixed

    def _decode(self, ids: Tensor, valid: Tensor, encoded: Tensor, encoded_valid: Tensor, recorder: Recorder | None) -> Tensor:
        stack, eps = self._weights.decoder, self._config.layer_norm_epsilon
        span = torch.arange(ids.shape[1], device=self.device)
        relative = span - span[:, None]
        bias = self._position_bias(stack, relative, bidirectional=False).permute(2, 0, 1)
        bias = bias.masked_fill(relative > 0, float("-inf")).unsqueeze(0)
        cross_bias, encoded_padding = _padding_bias(encoded_valid), Padding.of(encoded_valid, range(len(encoded_valid)))
        x, places = F.embedding(ids, stack.embedding).float(), valid_places(valid)
        for block in stack.blocks:
            x = self._self_attention(block.self_attention, x, bias)
            cross = block.cross_attention
            assert cross is not None
            assert cross.query is not None
            query = split_heads(projected(rms_norm(x, cross.norm, eps), cross.query), self._config.num_heads)
            key, value = (encoded_padding.padded(part.flatten(1)) for part in self._cross_keys(block, encoded).unbind(1))
            key, value = split_heads(key, self._config.num_heads), split_heads(value, self._config.num_heads)
            x = x + linear(attend(query, key, value, cross_bias), cross.out)
            x = self._feed_forward_at(block, x, places, recorder)
        return rms_norm(x, stack.final_norm, eps)

    def _self_attention(self, attention: Attention, x: Tensor, bias: Tensor) -> Tensor:
        fused = projected(rms_norm(x, attention.norm, self._config.layer_norm_epsilon), attention.into)
        query, key, value = (split_heads(part, self._config.num_heads) for part in fused.chunk(3, -1))
        return x + linear(attend(query, key, value, bias), attention.out)

    def _cross_keys(self, block: Block, encoded: Tensor) -> Tensor:
        """Keys and values of tokens without padding: (num_tokens, 2, num_heads, d_kv)."""
        assert block.cross_attention is not None
        return projected(encoded, block.cross_attention.into).view(len(encoded), 2, self._config.num_heads, -1)

    def _feed_forward_at(self, block: Block, x: Tensor, places: Tensor | None, recorder: Recorder | None) -> Tensor:
        """`x` plus its feed-forward part, computed for the tokens that are not padding."""
        eps = self._config.layer_norm_epsilon
        return plus_at(x, places, lambda tokens: self._feed_forward(block, rms_norm(tokens, block.norm, eps), recorder))

    # Parts

    def _feed_forward(self, block: Block, x: Tensor, recorder: Recorder | None) -> Tensor:
        """`x` (num_tokens, d_model), normalised, no padding."""
        if block.router is None:
            assert block.wi is not None
            assert block.wo is not None
            return linear(linear(x, block.wi, self._activation), block.wo)
        bias = None if block.router.bias is None else block.router.bias.float()
        logits = F.linear(x, block.router.weight.float(), bias)
        probability, chosen = logits.softmax(-1).max(-1)
        if recorder is not None:
            recorder.record(block.moe_layer, chosen.unsqueeze(1), logits, x, probability.unsqueeze(1))
        stack = self._experts[block.moe_layer]
        rows = stack.index_map.index_select(0, chosen)
        return apply_experts(x, rows, stack.weights, self._expert) * probability.unsqueeze(1)

    def _position_bias(self, stack: Stack, relative: Tensor, bidirectional: bool) -> Tensor:
        """Bias for each of `relative` (rows, keys), heads last: (rows, keys, num_heads)."""
        return F.embedding(self._buckets(relative, bidirectional), stack.position_bias).float()

    def _buckets(self, relative: Tensor, bidirectional: bool) -> Tensor:
        config = self._config
        return position_buckets(relative, bidirectional, config.relative_attention_num_buckets, config.relative_attention_max_distance)

    def _best_tokens(self, hidden: Tensor) -> Tensor:
        return self._logits(hidden).argmax(-1)

    def _logits(self, hidden: Tensor) -> Tensor:
        weights = self._weights
        if weights.lm_head is not None:
            return linear(hidden, weights.lm_head)
        return linear(hidden * self._config.d_model**-0.5, weights.shared)


def _padding_bias(valid: Tensor) -> Tensor:
    """0 where valid and -inf at padding: (rows, 1, 1, num_keys)."""
    return torch.zeros(valid.shape, device=valid.device).masked_fill(~valid, float("-inf"))[:, None, None]


class SwitchFamily:
    """The `Family` of Switch Transformers checkpoints."""

    name = "switch"

    def accepts(self, config: Mapping[str, object]) -> bool:
        return config.get("model_type") == "switch_transformers"

    def read(self, directory: Path, dtype: torch.dtype, device: torch.device, experts_dir: Path | None = None) -> SwitchModel:
        config = read_config(directory)
        if config.dense_act_fn not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise CheckpointError(f"{directory / 'config.json'}: dense_act_fn {config.dense_act_fn!r} is not supported; known are {known}")
        reader = SwitchReader(config, TensorSource(directory, dtype, device, experts_dir))
        weights = reader.read()
        return SwitchModel(config, weights, reader.experts, reader.layer_names)

    def assemble(self, config: Mapping[str, object], tensors: Mapping[str, Tensor], experts: Sequence[ExpertStack]) -> SwitchModel:
        read = config_of(config, "config.json")
        parts = SwitchParts(read, tensors)
        weights = parts.weights()
        parts.check_experts(experts)
        return SwitchModel(read, weights, experts, parts.layer_names)


FAMILY = SwitchFamily()
