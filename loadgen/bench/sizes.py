"""Sizes of a Switch Transformers model and its `config.json`; unless said otherwise those of google/switch-base-32."""

from __future__ import annotations

from dataclasses import asdict, dataclass

NUM_BUCKETS = 32  # of relative positions


@dataclass(frozen=True, slots=True)
class Sizes:
    """Every second block of each stack is sparse."""

    d_model: int = 768
    d_ff: int = 3072
    d_kv: int = 64
    num_heads: int = 12
    num_blocks: int = 12  # of each stack
    num_experts: int = 32
    vocab_size: int = 32128

    @property
    def inner(self) -> int:
        """Width of all heads together."""
        return self.num_heads * self.d_kv

    @property
    def num_moe_layers(self) -> int:
        return 2 * (self.num_blocks // 2)

    @property
    def expert_params(self) -> int:
        return 2 * self.d_model * self.d_ff

    def config(self) -> dict[str, object]:
        """As `config.json`; expert capacity is left to transformers."""
        told = asdict(self)
        num_blocks = told.pop("num_blocks")
        return {
            "model_type": "switch_transformers",
            "architectures": ["SwitchTransformersForConditionalGeneration"],
            **told,
            "num_layers": num_blocks,
            "num_decoder_layers": num_blocks,
            "num_sparse_encoder_layers": num_blocks // 2,
            "num_sparse_decoder_layers": num_blocks // 2,
            "relative_attention_num_buckets": NUM_BUCKETS,
            "dense_act_fn": "relu",
            "feed_forward_proj": "relu",
            "tie_word_embeddings": True,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "decoder_start_token_id": 0,
        }
