"""Qwen3-MoE (Qwen Team 2025): queries and keys normed head by head; some blocks may be dense."""

from __future__ import annotations

from dataclasses import replace

from services.model.families.decoder import DecoderFamily
from services.model.families.decoder_config import NO_WINDOW, DecoderConfig, Fields, decoder_config, sparse_blocks


def _config(fields: Fields) -> DecoderConfig:
    common = decoder_config(fields)
    window = fields.integer("sliding_window", default=NO_WINDOW) if fields.flag("use_sliding_window", False) else NO_WINDOW
    return replace(
        common,
        d_ff=fields.integer("moe_intermediate_size"),
        query_norm="head",
        sparse=sparse_blocks(fields),
        windows=(window,) * common.num_layers,
    )


FAMILY = DecoderFamily("qwen3_moe", _config)
