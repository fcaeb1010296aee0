"""The Switch Transformers family against transformers' own model, on random pico checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

from services.model.errors import CheckpointError
from services.model.families.base import ExpertStack
from services.model.families.layers import of_like_lengths
from services.model.families.switch import SwitchFamily
from services.tasks.toy import toy_world

CPU = torch.device("cpu")
PROMPTS = [[5, 9, 11, 1], [7, 1], [20, 21, 22, 23, 24, 25, 26, 1], [3, 4, 1]]
TARGETS = [[8, 9, 1], [10, 11, 12, 13, 1], [1], [14, 15, 1]]


class CountingRecorder:
    def __init__(self) -> None:
        self.num_tokens: dict[int, int] = {}

    def record(self, layer: int, chosen: torch.Tensor, logits: torch.Tensor, inputs: torch.Tensor, gates: torch.Tensor) -> None:
        assert chosen.shape == (logits.shape[0], 1)
        self.num_tokens[layer] = self.num_tokens.get(layer, 0) + chosen.shape[0]


def write_pico(directory: Path, *, max_shard_size: str = "1GB", **overrides) -> Any:
    torch.manual_seed(0)
    settings = dict(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4, num_experts=4, dropout_rate=0.0,
        num_sparse_encoder_layers=2, num_sparse_decoder_layers=2, expert_capacity=4096, router_jitter_noise=0.0, decoder_start_token_id=0,
    )  # fmt: skip
    model = SwitchTransformersForConditionalGeneration(SwitchTransformersConfig(**{**settings, **overrides})).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "layer_norm" in name:
                tensor.uniform_(0.5, 1.5)
            elif "SelfAttention" in name or "EncDecAttention" in name:
                tensor.mul_(3.0)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    return model


def reference_logits(model, prompt, target):
    start = model.config.decoder_start_token_id
    with torch.no_grad():
        return model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[start, *target[:-1]]])).logits[0]


def generate(model, prompts, num_tokens):
    cache = model.new_cache(len(prompts))
    slots = list(range(len(prompts)))
    model.prefill(cache, slots, prompts)
    return [list(tokens) for tokens in zip(*(model.step(cache, slots) for _ in range(num_tokens)), strict=True)]


SHAPES = [
    pytest.param({}, id="sparse-step-1"),
    pytest.param({"num_layers": 4, "num_decoder_layers": 4, "num_sparse_encoder_layers": 2}, id="sparse-step-2"),
    pytest.param({"tie_word_embeddings": False, "dense_act_fn": "gelu_new"}, id="untied-gelu"),
    pytest.param({"num_sparse_decoder_layers": 0, "d_ff": 640}, id="dense-decoder-large-experts"),
]


@pytest.mark.parametrize("overrides", SHAPES)
def test_teacher_forced_logits_equal_those_of_transformers_for_ragged_prompts(tmp_path, overrides):
    reference = write_pico(tmp_path, **overrides)
    model = SwitchFamily().read(tmp_path, torch.float32, CPU)
    with torch.no_grad():
        logits = model.teacher_forced(PROMPTS, TARGETS)
    for row, (prompt, target) in enumerate(zip(PROMPTS, TARGETS, strict=True)):
        expected = reference_logits(reference, prompt, target)
        torch.testing.assert_close(logits[row, : len(target)], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("overrides", SHAPES)
def test_greedy_steps_give_the_tokens_that_transformers_generates(tmp_path, overrides):
    reference = write_pico(tmp_path, **overrides)
    model = SwitchFamily().read(tmp_path, torch.float32, CPU)
    answers = generate(model, PROMPTS, 20)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        expected = reference.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None)[0, 1:].tolist()
        assert answer == expected


def test_recorded_choices_sum_to_the_tokens_without_padding(tmp_path):
    write_pico(tmp_path)
    model = SwitchFamily().read(tmp_path, torch.float32, CPU)
    recorder = CountingRecorder()
    model.teacher_forced(PROMPTS, TARGETS, recorder)
    num_prompt_tokens, num_target_tokens = sum(map(len, PROMPTS)), sum(map(len, TARGETS))
    assert recorder.num_tokens == {0: num_prompt_tokens, 1: num_prompt_tokens, 2: num_target_tokens, 3: num_target_tokens}


def test_serving_records_as_many_choices_as_it_runs_tokens(tmp_path):
    write_pico(tmp_path)
    model = SwitchFamily().read(tmp_path, torch.float32, CPU)
    recorder = CountingRecorder()
    cache = model.new_cache(4)
    model.prefill(cache, [0, 1, 2, 3], PROMPTS, recorder)
    model.step(cache, [0, 3], recorder)
    assert recorder.num_tokens == {0: 17, 1: 17, 2: 2, 3: 2}


@pytest.mark.parametrize("d_ff", [48, 640])
def test_merged_experts_answer_as_the_copies_they_stand_for(tmp_path, d_ff):
    write_pico(tmp_path, d_ff=d_ff)
    model = SwitchFamily().read(tmp_path, torch.float32, CPU)
    index_map = torch.tensor([0, 1, 0, 1])
    kept = [ExpertStack({name: tensor[:2] for name, tensor in stack.weights.items()}, index_map) for stack in model.experts]
    copied = [ExpertStack({name: tensor[index_map] for name, tensor in stack.weights.items()}, torch.arange(4)) for stack in model.experts]
    merged = model.with_experts(kept)
    assert generate(merged, PROMPTS, 8) == generate(model.with_experts(copied), PROMPTS, 8)
    assert merged.parameters()["shared"] is model.parameters()["shared"]
    assert merged.experts[0].num_bytes() * 2 == model.experts[0].num_bytes()


def test_training_reaches_every_kind_of_weight(tmp_path):
    write_pico(tmp_path)
    model = SwitchFamily().read(tmp_path, torch.float32, CPU)
    for tensor in model.parameters().values():
        tensor.requires_grad_(True)
    model.teacher_forced(PROMPTS, TARGETS).square().mean().backward()
    assert all(tensor.grad is not None and bool(tensor.grad.any()) for tensor in model.parameters().values())


def test_bfloat16_weights_stay_near_the_float32_logits(tmp_path):
    write_pico(tmp_path)
    exact = SwitchFamily().read(tmp_path, torch.float32, CPU)
    stored = SwitchFamily().read(tmp_path, torch.bfloat16, CPU)
    assert {tensor.dtype for tensor in stored.parameters().values()} == {torch.bfloat16}
    with torch.no_grad():
        difference = stored.teacher_forced(PROMPTS, TARGETS) - exact.teacher_forced(PROMPTS, TARGETS)
    assert difference[0].abs().mean() < 0.1


def test_sharded_checkpoints_are_read(tmp_path):
    write_pico(tmp_path / "whole")
    write_pico(tmp_path / "shards", max_shard_size="40KB")
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    whole, shards = (SwitchFamily().read(tmp_path / name, torch.float32, CPU).parameters() for name in ("whole", "shards"))
    assert all(torch.equal(whole[name], shards[name]) for name in whole)


def test_written_weights_load_in_transformers(tmp_path):
    reference = write_pico(tmp_path)
    SwitchFamily().read(tmp_path, torch.float32, CPU).write(tmp_path / "model.safetensors")
    again = SwitchTransformersForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in reference.state_dict().items())


def test_shape_counts_every_parameter_once(tmp_path):
    reference = write_pico(tmp_path)
    model = SwitchFamily().read(tmp_path, torch.float32, CPU)
    num_expert_params = sum(layer.num_experts * layer.expert_params for layer in model.shape.layers)
    assert model.shape.non_expert_params + num_expert_params == sum(tensor.numel() for tensor in reference.parameters())
    assert [layer.name for layer in model.shape.layers] == ["encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1"]


def test_bad_checkpoints_are_refused_with_the_file_or_tensor_named(tmp_path):
    family = SwitchFamily()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        family.read(tmp_path, torch.float32, CPU)
    write_pico(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_experts": 5}))
    with pytest.raises(CheckpointError, match=r"router\.classifier\.weight.*\(4, 32\).*\(5, 32\)"):
        family.read(tmp_path, torch.float32, CPU)
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_layers": 3}))
    with pytest.raises(CheckpointError, match=r"encoder\.block\.2\..*missing"):
        family.read(tmp_path, torch.float32, CPU)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"\x80\x04pickle" * 10)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        family.read(tmp_path, torch.float32, CPU)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle"):
        family.read(tmp_path, torch.float32, CPU)


def test_the_demo_checkpoint_answers_the_same_in_transformers():
    from transformers import AutoTokenizer

    directory = Path(__file__).parents[2] / "infra" / "demo-model"
    reference: Any = SwitchTransformersForConditionalGeneration.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    items = toy_world().heldout.items[::750]
    prompts = [tokenizer(item.prompt)["input_ids"] for item in items]
    answers = generate(SwitchFamily().read(directory, torch.float32, CPU), prompts, 6)
    scores = []
    for item, prompt, answer in zip(items, prompts, answers, strict=True):
        expected = reference.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)[0, 1:].tolist()
        assert answer[: len(expected)] == expected
        scores.append(tokenizer.decode(expected, skip_special_tokens=True) == item.references[0])
    assert sum(scores) >= 0.9 * len(scores)
    assert sum(path.stat().st_size for path in directory.iterdir() if path.is_file()) <= 15 * 2**20


def test_prompts_of_unlike_lengths_in_one_prefill_are_answered_as_alone(tmp_path):
    write_pico(tmp_path)
    model = SwitchFamily().read(tmp_path, torch.float32, CPU)
    prompts = [[*(2 + (7 * n + m) % 60 for n in range(length)), 1] for m, length in enumerate((90, 3, 30, 28, 1, 60, 33))]
    assert len(of_like_lengths([len(prompt) for prompt in prompts])) == 4
    assert generate(model, prompts, 6) == [generate(model, [prompt], 6)[0] for prompt in prompts]


def test_rows_are_grouped_so_that_little_is_padding():
    lengths = [40, 9, 145, 41, 17, 9, 50, 51]
    groups = of_like_lengths(lengths)
    assert sorted(row for group in groups for row in group) == list(range(8))
    assert [sorted(lengths[row] for row in group) for group in groups] == [[9, 9, 17], [40, 41, 50], [51], [145]]
