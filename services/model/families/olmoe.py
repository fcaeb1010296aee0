"""OLMoE (Muennighoff et al. 2024): queries and keys normed over all heads together, optionally clipped."""

from __future__ import annotations

from dataclasses import replace

from services.model.families.decoder import DecoderFamily
from services.model.families.decoder_config import DecoderConfig, Fields, decoder_config


def _config(fields: Fields) -> DecoderConfig:
    clip = fields.number("clip_qkv") if fields.has("clip_qkv") else None
    return replace(decoder_config(fields), query_norm="whole", clip=clip, eps=fields.number("rms_norm_eps", 1e-5))


FAMILY = DecoderFamily("olmoe", _config)
