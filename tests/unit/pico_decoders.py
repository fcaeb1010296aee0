"""Random-weight pico checkpoints of every decoder-only family, with the word tokenizer of `pico.py`. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.unit.pico import NUM_WORDS, tokenizer, write_pico_checkpoint

COMMON = dict(
    vocab_size=NUM_WORDS + 3, hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    num_experts_per_tok=2, pad_token_id=0, eos_token_id=1, bos_token_id=None,
)  # fmt: skip
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "olmoe": (OlmoeConfig, OlmoeForCausalLM, {"num_experts": 8}),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM, {"num_experts": 8, "moe_intermediate_size": 24, "head_dim": 12}),
    "qwen2_moe": (
        Qwen2MoeConfig,
        Qwen2MoeForCausalLM,
        {"num_experts": 8, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
    ),
    "mixtral": (MixtralConfig, MixtralForCausalLM, {"num_local_experts": 8}),
}


def write_pico_decoder(directory: Path, family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides) -> Any:
    """2 blocks, both sparse: 2 MoE layers x 8 experts of which a token takes 2, d_model 32, d_ff 24. Gives transformers' own model."""
    torch.manual_seed(seed)
    config_class, model_class, settings = FAMILIES[family]
    model = model_class(config_class(**{**COMMON, **settings, **overrides})).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.dim() == 1:
                tensor.uniform_(-0.5, 0.5) if "bias" in name else tensor.uniform_(0.5, 1.5)
            else:
                tensor.normal_(std=0.3)
    model.to(dtype).save_pretrained(directory)
    tokenizer(ends_prompts=False).save_pretrained(directory)
    return model


def write_pico(directory: Path, family: str, **options: Any) -> Path:
    """Of any family."""
    if family == "switch":
        return write_pico_checkpoint(directory, **options)
    write_pico_decoder(directory, family, **options)
    return directory
