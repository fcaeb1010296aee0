"""Switch models of stated sizes with seeded random weights: what they cost to run and to swap does not depend on what they were taught."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from loadgen.bench.sizes import NUM_BUCKETS, Sizes
from services.model.families import family_of
from services.model.families.base import ExpertStack, MoeModel
from services.model.tokenizer import Tokenizer

END = 1  # the token that ends an answer, as in `Sizes.config`; its embedding is zero, so that answers never end early
FIRST_WORD = 3  # ids before it are special
EMBEDDING_SCALE = 0.02  # small beside what blocks add, so that tokens follow from prompts instead of repeating themselves


SHAPES = {
    "pico": Sizes(d_model=32, d_ff=48, d_kv=8, num_heads=4, vocab_size=256),
    "switch-base-32": Sizes(),
}


def word_tokenizer(shape: Sizes) -> Tokenizer:
    """One token a word, `w0` to the end of the vocabulary."""
    words = {"<pad>": 0, "</s>": END, "<unk>": 2, **{f"w{n}": n + FIRST_WORD for n in range(num_words(shape))}}
    fast = FastTokenizer(WordLevel(words, unk_token="<unk>"))
    fast.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment,unused-ignore]
    fast.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])  # type: ignore[assignment,unused-ignore]
    files = {"tokenizer.json": fast.to_str().encode(), "tokenizer_config.json": json.dumps({"model_max_length": 512}).encode()}
    return Tokenizer.from_files(files, "benchmark")


def num_words(shape: Sizes) -> int:
    return shape.vocab_size - FIRST_WORD


def random_rest(shape: Sizes, seed: int) -> MoeModel:
    """Everything but the experts; of these one a layer stands in, of zeros."""
    weights = _Rest(shape, torch.Generator().manual_seed(seed)).tensors()
    experts = [ExpertStack(_no_expert(shape), torch.zeros(shape.num_experts, dtype=torch.int64)) for _ in range(shape.num_moe_layers)]
    config = shape.config()
    return family_of(config).assemble(config, weights, experts)


def random_experts(shape: Sizes, layer: int, seed: int) -> Mapping[str, Tensor]:
    """All original experts of one layer, (num_experts, *matrix_shape) bfloat16 each; seeded by layer, so that layers can be made alone."""
    generator = torch.Generator().manual_seed(1000 * (seed + 1) + layer)
    sizes = {"wi": (shape.d_ff, shape.d_model), "wo": (shape.d_model, shape.d_ff)}
    return {name: _normal((shape.num_experts, *size), size[1] ** -0.5, generator) for name, size in sizes.items()}


def _no_expert(shape: Sizes) -> dict[str, Tensor]:
    sizes = {"wi": (1, shape.d_ff, shape.d_model), "wo": (1, shape.d_model, shape.d_ff)}
    return {name: torch.zeros(size, dtype=torch.bfloat16) for name, size in sizes.items()}


def _normal(size: tuple[int, ...], scale: float, generator: torch.Generator) -> Tensor:
    return torch.empty(size, dtype=torch.bfloat16).normal_(0.0, scale, generator=generator)


class _Rest:
    def __init__(self, shape: Sizes, generator: torch.Generator) -> None:
        self._shape = shape
        self._generator = generator

    def tensors(self) -> dict[str, Tensor]:
        shape = self._shape
        shared = _normal((shape.vocab_size, shape.d_model), EMBEDDING_SCALE, self._generator)
        shared[END] = 0
        made = {"shared": shared}
        for stack in ("encoder", "decoder"):
            made[f"{stack}.position_bias"] = _normal((NUM_BUCKETS, shape.num_heads), 1.0, self._generator)
            made[f"{stack}.final_norm"] = self._norm()
            for index in range(shape.num_blocks):
                made |= {f"{stack}.{index}.{part}": tensor for part, tensor in self._block(stack, index).items()}
        return made

    def _block(self, stack: str, index: int) -> dict[str, Tensor]:
        shape = self._shape
        inner = shape.inner
        block = {
            "norm": self._norm(),
            "self.norm": self._norm(),
            "self.into": self._matrix(3 * inner, shape.d_model),
            "self.out": self._matrix(shape.d_model, inner),
        }
        if stack == "decoder":
            block |= {
                "cross.norm": self._norm(),
                "cross.into": self._matrix(2 * inner, shape.d_model),
                "cross.out": self._matrix(shape.d_model, inner),
                "cross.query": self._matrix(inner, shape.d_model),
            }
        if index % 2:
            return block | {"router.weight": self._matrix(shape.num_experts, shape.d_model)}
        return block | {"wi": self._matrix(shape.d_ff, shape.d_model), "wo": self._matrix(shape.d_model, shape.d_ff)}

    def _norm(self) -> Tensor:
        return torch.ones(self._shape.d_model, dtype=torch.bfloat16)

    def _matrix(self, width_out: int, width_in: int) -> Tensor:
        """For outputs as large as inputs."""
        return _normal((width_out, width_in), width_in**-0.5, self._generator)
