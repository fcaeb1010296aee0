"""Mixtral (Jiang et al. 2024): shares always normalised, no biases, sometimes a sliding window; experts have names of their own."""

from __future__ import annotations

from dataclasses import replace

from services.model.families.decoder import DecoderFamily
from services.model.families.decoder_config import NO_WINDOW, DecoderConfig, Fields, decoder_config
from services.model.families.decoder_weights import Naming


def _config(fields: Fields) -> DecoderConfig:
    common = decoder_config(fields, rope_theta=1e6)
    window = fields.integer("sliding_window", default=NO_WINDOW)
    return replace(
        common,
        normalise_shares=True,
        input_bias=False,
        output_bias=False,
        eps=fields.number("rms_norm_eps", 1e-5),
        windows=(window,) * common.num_layers,
    )


FAMILY = DecoderFamily("mixtral", _config, Naming("block_sparse_moe", gate="w1", up="w3", wo="w2"))
