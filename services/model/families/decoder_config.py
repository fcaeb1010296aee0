"""What a decoder-only mixture of experts is, whatever its family: sizes and switches, read from a `config.json` in transformers' words.

A family's file replaces what it has otherwise; nothing here knows a family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.model.errors import CheckpointError

NO_WINDOW = 0


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """One stack of pre-norm blocks with rotary positions; in sparse blocks a router and gated experts."""

    vocab_size: int
    d_model: int
    num_heads: int
    num_key_heads: int  # several query heads may share one
    d_head: int
    d_ff: int  # of one expert
    dense_d_ff: int  # of a block without experts
    shared_d_ff: int  # of the expert that every token passes; 0: none
    num_experts: int
    top_k: int
    normalise_shares: bool  # the chosen experts' shares sum to 1
    query_norm: str  # RMS norm of queries and keys: "none", "head" (of each head) or "whole" (of all heads together)
    input_bias: bool  # of query, key and value
    output_bias: bool
    clip: float | None  # most that a query, key or value may be, either way
    rope_theta: float
    eps: float
    activation: str
    tied: bool
    eos_token_ids: tuple[int, ...]
    sparse: tuple[bool, ...]  # by block
    windows: tuple[int, ...]  # tokens that a block looks back on, itself included; NO_WINDOW: all

    @property
    def num_layers(self) -> int:
        return len(self.sparse)

    @property
    def query_width(self) -> int:
        return self.num_heads * self.d_head

    @property
    def key_width(self) -> int:
        return self.num_key_heads * self.d_head


class Fields:
    """A parsed `config.json`, field by field; `source` is named in errors."""

    def __init__(self, raw: Mapping[str, object], source: str) -> None:
        self._raw = raw
        self.source = source

    def integer(self, *names: str, default: int | None = None) -> int:
        """The first of the names that is there."""
        value = self._first(names, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise CheckpointError(f"{self.source}: field {names[0]!r} is {value!r}, not a whole number")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self._first((name,), default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(f"{self.source}: field {name!r} is {value!r}, not a number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        return bool(self._first((name,), default))

    def text(self, name: str, default: str) -> str:
        return str(self._first((name,), default))

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers; one alone is a list of one, an absent one is empty."""
        value = self._raw.get(name)
        values = [] if value is None else value if isinstance(value, list) else [value]
        if any(isinstance(each, bool) or not isinstance(each, int) for each in values):
            raise CheckpointError(f"{self.source}: field {name!r} is {value!r}, not whole numbers")
        return tuple(values)

    def texts(self, name: str) -> list[str]:
        """A list of words; empty where it is absent."""
        value = self._raw.get(name)
        return [str(each) for each in value] if isinstance(value, list) else []

    def has(self, name: str) -> bool:
        return self._raw.get(name) is not None

    def within(self, name: str) -> Fields:
        """The fields of an object that is a field itself; none where it is absent."""
        value = self._raw.get(name)
        return Fields(value if isinstance(value, dict) else {}, f"{self.source}, {name}")

    def _first(self, names: tuple[str, ...], default: object) -> object:
        value = next((self._raw[name] for name in names if self._raw.get(name) is not None), default)
        if value is None:
            raise CheckpointError(f"{self.source}: field {names[0]!r} is missing")
        return value


def decoder_config(fields: Fields, rope_theta: float = 10_000.0) -> DecoderConfig:
    """What the families have in common. `rope_theta` is the default of the family."""
    num_layers, num_heads = fields.integer("num_hidden_layers"), fields.integer("num_attention_heads")
    d_model = fields.integer("hidden_size")
    ends = fields.integers("eos_token_id")
    if not ends:
        raise CheckpointError(f"{fields.source}: field 'eos_token_id' is missing; name the token that ends an answer")
    bias = fields.flag("attention_bias", False)
    return DecoderConfig(
        vocab_size=fields.integer("vocab_size"),
        d_model=d_model,
        num_heads=num_heads,
        num_key_heads=fields.integer("num_key_value_heads", default=num_heads),
        d_head=fields.integer("head_dim", default=d_model // num_heads),
        d_ff=fields.integer("intermediate_size"),
        dense_d_ff=fields.integer("intermediate_size"),
        shared_d_ff=0,
        num_experts=fields.integer("num_experts", "num_local_experts"),
        top_k=fields.integer("num_experts_per_tok"),
        normalise_shares=fields.flag("norm_topk_prob", False),
        query_norm="none",
        input_bias=bias,
        output_bias=bias,
        clip=None,
        rope_theta=_rope_theta(fields, rope_theta),
        eps=fields.number("rms_norm_eps", 1e-6),
        activation=fields.text("hidden_act", "silu"),
        tied=fields.flag("tie_word_embeddings", False),
        eos_token_ids=ends,
        sparse=(True,) * num_layers,
        windows=(NO_WINDOW,) * num_layers,
    )


def sparse_blocks(fields: Fields) -> tuple[bool, ...]:
    """Which blocks have experts, where every so many do and some are named that do not (both Qwen families)."""
    dense, step = fields.integers("mlp_only_layers"), fields.integer("decoder_sparse_step", default=1)
    return tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(fields.integer("num_hidden_layers")))


def _rope_theta(fields: Fields, default: float) -> float:
    """Base of the rotary frequencies, where transformers 5 writes it or where 4 did. Scaled positions are refused."""
    told = fields.within("rope_parameters" if fields.has("rope_parameters") else "rope_scaling")
    kind = told.text("rope_type", told.text("type", "default"))
    if kind != "default" or told.number("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError(f"{told.source}: rope_type {kind!r} is not supported; use a checkpoint whose positions are not scaled")
    return told.number("rope_theta", fields.number("rope_theta", default))
