"""Attention in bfloat16, as wide models of that dtype have it where the processor multiplies it: near the exact one, in every pass."""

from __future__ import annotations

import pytest
import torch

from services.model.checkpoint import read_base
from services.model.families.blocked import multiplies_bfloat16
from services.model.families.layers import LEAST_WIDTH, attend, mixing_dtype
from tests.unit.pico import word, write_pico_checkpoint

BFLOAT16 = torch.bfloat16


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = write_pico_checkpoint(tmp_path_factory.mktemp("wide"), d_model=LEAST_WIDTH, d_kv=64, num_heads=8)
    return read_base(directory, dtype="bfloat16")


def test_attention_in_bfloat16_is_near_the_exact_one():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, 4, 9, 16, generator=generator).to(BFLOAT16) for _ in range(3))
    bias = torch.randn(3, 1, 1, 9, generator=generator).masked_fill(torch.arange(9) > 6, float("-inf"))
    exact = attend(query.float(), key.float(), value.float(), bias, 0.25)
    made = attend(query, key, value, bias, 0.25)
    assert made.dtype == BFLOAT16
    assert float((made.float() - exact).norm() / exact.norm()) < 0.01


def test_only_wide_models_that_serve_attend_in_it():
    with torch.inference_mode():
        wide, narrow = torch.zeros(2, LEAST_WIDTH), torch.zeros(2, LEAST_WIDTH - 1)
        assert mixing_dtype(wide.to(BFLOAT16)) == (BFLOAT16 if multiplies_bfloat16() else torch.float32)
        assert mixing_dtype(wide) == mixing_dtype(narrow.to(BFLOAT16)) == mixing_dtype(wide.half()) == torch.float32
    assert mixing_dtype(torch.zeros(2, LEAST_WIDTH, dtype=BFLOAT16)) == torch.float32


@pytest.mark.parametrize("laid_out", [False, True])
def test_steps_give_the_best_token_of_a_whole_pass_or_one_as_good_within_rounding(base, laid_out):
    model = base.model.blocked() if laid_out else base.model
    prompts = [base.tokenizer.encode(" ".join(word(n % 60) for n in range(5 * row, 6 * row + 1))) for row in range(12)]
    slots = list(range(12))
    cache = model.new_cache(12)
    model.prefill(cache, slots, prompts)
    answers = [list(row) for row in zip(*(model.step(cache, slots) for _ in range(8)), strict=True)]
    with torch.inference_mode():
        logits = model.teacher_forced(prompts, answers)
    best, chosen = logits.max(-1).values, logits.gather(2, torch.tensor(answers).unsqueeze(2)).squeeze(2)
    assert float(((best - chosen) / (best - logits.mean(-1))).max()) < 0.05
    assert len({token for answer in answers for token in answer}) > 3, "all answer alike"
