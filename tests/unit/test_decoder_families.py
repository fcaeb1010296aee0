"""The decoder-only families against transformers' own models, on random pico checkpoints."""

from __future__ import annotations

import json

import pytest
import torch

from services.core.merging.values import LayerPlan, MergePlan
from services.model.alignment import align
from services.model.checkpoint import read_base
from services.model.errors import CheckpointError
from services.model.families import family_of
from services.model.merging import merged_experts
from tests.unit.pico_decoders import FAMILIES, write_pico_decoder

CPU = torch.device("cpu")
PROMPTS = [[5, 9, 11, 30], [7], [20, 21, 22, 23, 24, 25, 26, 40, 41, 42, 43], [3, 4, 50]]
TARGETS = [[8, 9, 1], [10, 11, 12, 13, 1], [1], [14, 15, 1]]
NUM_STEPS = 40  # past the first size of the cache

VARIANTS = [
    pytest.param("olmoe", {}, id="olmoe"),
    pytest.param(
        "olmoe", {"norm_topk_prob": True, "clip_qkv": 0.7, "num_key_value_heads": 4, "num_experts_per_tok": 5}, id="olmoe-clipped"
    ),
    pytest.param("olmoe", {"attention_bias": True, "tie_word_embeddings": True}, id="olmoe-tied-biases"),
    pytest.param("qwen3_moe", {}, id="qwen3"),
    pytest.param("qwen3_moe", {"num_hidden_layers": 4, "decoder_sparse_step": 2, "norm_topk_prob": True}, id="qwen3-every-other-sparse"),
    pytest.param("qwen3_moe", {"mlp_only_layers": [0], "use_sliding_window": True, "sliding_window": 5}, id="qwen3-dense-first-window"),
    pytest.param("qwen2_moe", {}, id="qwen2-shared-expert"),
    pytest.param(
        "qwen2_moe", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2, "norm_topk_prob": True}, id="qwen2-window"
    ),
    pytest.param("mixtral", {}, id="mixtral"),
    pytest.param("mixtral", {"sliding_window": 6, "num_experts_per_tok": 1}, id="mixtral-window-top-1"),
    pytest.param("mixtral", {"intermediate_size": 400}, id="mixtral-large-experts"),
    pytest.param("qwen3_moe", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, id="qwen3-rope-theta"),
]


def read(directory, dtype=torch.float32):
    return family_of(json.loads((directory / "config.json").read_text())).read(directory, dtype, CPU)


def reference_logits(reference, prompt, target):
    with torch.no_grad():
        return reference(input_ids=torch.tensor([[*prompt, *target[:-1]]])).logits[0, len(prompt) - 1 :]


def generate(model, prompts, num_tokens):
    cache = model.new_cache(len(prompts))
    slots = list(range(len(prompts)))
    model.prefill(cache, slots, prompts)
    return [list(tokens) for tokens in zip(*(model.step(cache, slots) for _ in range(num_tokens)), strict=True)]


def assert_same_as(reference, model):
    with torch.no_grad():
        logits = model.teacher_forced(PROMPTS, TARGETS)
    for row, (prompt, target) in enumerate(zip(PROMPTS, TARGETS, strict=True)):
        expected = reference_logits(reference, prompt, target)
        torch.testing.assert_close(logits[row, : len(target)], expected, atol=1e-5, rtol=1e-5)
    answers = generate(model, PROMPTS, NUM_STEPS)
    for prompt, answer in zip(PROMPTS, answers, strict=True):  # each token is the reference's best after all before it
        assert reference_logits(reference, prompt, answer).argmax(-1).tolist() == answer
    assert len({token for answer in answers for token in answer}) > 10


@pytest.mark.parametrize(("family", "overrides"), VARIANTS)
def test_logits_and_greedy_tokens_of_ragged_prompts_equal_those_of_transformers(tmp_path, family, overrides):
    reference = write_pico_decoder(tmp_path, family, **overrides)
    model = read(tmp_path)
    assert_same_as(reference, model)
    num_expert_params = sum(layer.num_experts * layer.expert_params for layer in model.shape.layers)
    assert model.shape.non_expert_params + num_expert_params == sum(tensor.numel() for tensor in reference.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_equals_transformers_with_the_merged_weights_in_every_place(tmp_path, family):
    reference = write_pico_decoder(tmp_path, family)
    base = read_base(tmp_path)
    layer = LayerPlan(((0, 5), (2, 1, 7), (3,), (6, 4)), ((0.75, 0.25), (0.5, 0.25, 0.25), (1.0,), (0.5, 0.5)))
    merged = merged_experts(base, align(base), MergePlan(base.base_id, "m-smoe", (layer,) * 2))
    for block, stack in zip(reference.model.layers, merged, strict=True):
        spread = {name: weight[stack.index_map] for name, weight in stack.weights.items()}
        with torch.no_grad():
            block.mlp.experts.gate_up_proj.copy_(torch.cat([spread["gate"], spread["up"]], dim=1))
            block.mlp.experts.down_proj.copy_(spread["wo"])
    assert_same_as(reference, base.model.with_experts(merged))


def test_greedy_answers_are_those_that_transformers_generates(tmp_path):
    reference = write_pico_decoder(tmp_path, "olmoe")
    longest = max(map(len, PROMPTS))
    left_padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in PROMPTS])
    generated = reference.generate(
        left_padded, attention_mask=(left_padded > 0).long(), max_new_tokens=8, do_sample=False, eos_token_id=None
    )
    assert generate(read(tmp_path), PROMPTS, 8) == generated[:, longest:].tolist()


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("olmoe", {"num_experts": 9}, r"layers\.0\.mlp\.gate\.weight.*\(8, 32\).*\(9, 32\)"),
        ("olmoe", {"num_hidden_layers": 3}, r"model\.layers\.2\..*missing"),
        ("olmoe", {"eos_token_id": None}, "eos_token_id.*missing"),
        ("olmoe", {"hidden_size": "wide"}, "hidden_size.*'wide'.*whole number"),
        ("olmoe", {"hidden_act": "tanhish"}, "hidden_act 'tanhish'"),
        ("mixtral", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn' is not supported"),
        ("qwen3_moe", {"mlp_only_layers": [0, 1]}, "no block has experts"),
        ("qwen2_moe", {"shared_expert_intermediate_size": 41}, "shared_expert.*shape"),
    ],
)
def test_what_a_config_asks_for_and_the_checkpoint_lacks_is_named(tmp_path, family, change, message):
    write_pico_decoder(tmp_path, family)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path)


def test_a_config_as_transformers_4_wrote_it_reads_the_same(tmp_path):
    write_pico_decoder(tmp_path, "qwen3_moe", rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    expected = generate(read(tmp_path), PROMPTS, 8)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    older = {"rope_theta": rope["rope_theta"], "rope_scaling": None, "num_experts": config.pop("num_local_experts")}
    path.write_text(json.dumps(config | older))
    assert generate(read(tmp_path), PROMPTS, 8) == expected


def test_an_answer_ends_with_any_of_several_end_tokens(tmp_path):
    write_pico_decoder(tmp_path, "qwen3_moe", eos_token_id=[1, 5])
    assert read(tmp_path).shape.eos_token_ids == (1, 5)
