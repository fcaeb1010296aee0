"""Qwen2-MoE (Qwen Team 2024): beside the chosen experts a shared one that every token passes, scaled by a gate of its own."""

from __future__ import annotations

from dataclasses import replace

from services.model.families.decoder import DecoderFamily
from services.model.families.decoder_config import NO_WINDOW, DecoderConfig, Fields, decoder_config, sparse_blocks


def _config(fields: Fields) -> DecoderConfig:
    return replace(
        decoder_config(fields),
        d_ff=fields.integer("moe_intermediate_size"),
        shared_d_ff=fields.integer("shared_expert_intermediate_size"),
        input_bias=fields.flag("qkv_bias", True),
        output_bias=False,
        sparse=sparse_blocks(fields),
        windows=_windows(fields),
    )


def _windows(fields: Fields) -> tuple[int, ...]:
    """Where sliding windows are used at all, every other one of the first `max_window_layers` blocks has one."""
    num_layers = fields.integer("num_hidden_layers")
    if not fields.flag("use_sliding_window", False):
        return (NO_WINDOW,) * num_layers
    window, first = fields.integer("sliding_window"), fields.integer("max_window_layers", default=28)
    kinds = fields.texts("layer_types") or [
        "sliding_attention" if n % 2 == 0 and n < first else "full_attention" for n in range(num_layers)
    ]
    return tuple(window if kind == "sliding_attention" else NO_WINDOW for kind in kinds)


FAMILY = DecoderFamily("qwen2_moe", _config)
