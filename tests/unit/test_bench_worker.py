"""`moedge bench worker`, small: its counts and equalities, never its speed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from loadgen.bench.sizes import Sizes
from loadgen.bench.worker import ours, rival
from loadgen.bench.worker.lengths import QUANTILES, BenchTask, built_in, of_data
from loadgen.bench.worker.limit import CallRecorder, Machine, limit_of, routing_entropy
from loadgen.bench.worker.models import four_bits, merged, random_model, transformers_model
from loadgen.cli.main import app
from services.tasks.errors import SourceError
from tests.unit.pico import write_pico_checkpoint

PICO = Sizes(d_model=64, d_ff=128, d_kv=16, num_heads=4, num_blocks=4, num_experts=8, vocab_size=200)


@pytest.fixture(scope="module")
def model():
    return random_model(PICO, torch.float32, 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def tasks():
    return built_in().draw(20, PICO.vocab_size, 0)


def test_the_command_answers_every_task_and_says_so_in_json():
    small = "--tasks 10 --concurrent 4 --rounds 1 --checked 6 --blocks 2 --width 64 --experts 4 --vocabulary 200 --json"
    result = CliRunner().invoke(app, ["bench", "worker", *small.split()])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["num_checked"], told["num_equal"], told["identical_tokens"]) == (6, 6, True)
    assert told["output_tokens"] == sum(task.num_output for task in built_in().draw(10, 200, 0))
    assert {figures["size"] for figures in told["static"]} == {2, 4}
    assert told["ratio_best_static_batch"] == pytest.approx(told["tokens_per_s"] / told["best_static"]["tokens_per_s"])
    assert set(told["first_token"]) == set(told["between_tokens"]) == set(told["completion"]) == {"p50_s", "p95_s", "p99_s"}
    assert told["peak_rss_bytes"] > 0
    assert told["merged"]["weight_bytes"] < told["weight_bytes"]
    assert 0 < told["routing_entropy"] <= 1
    assert told["limit"]["share_reached"] > 0
    four_bits = told["four_bits"]
    assert four_bits["ratio_bfloat16"] == pytest.approx(four_bits["tokens_per_s"] / told["tokens_per_s"])
    assert four_bits["expert_bytes"] < four_bits["weight_bytes"] < told["weight_bytes"]
    assert four_bits["layer_difference"] < 0.01
    assert set(four_bits["first_token"]) == set(four_bits["between_tokens"]) == set(four_bits["completion"]) == set(told["completion"])


def test_ours_and_transformers_answer_alike_and_share_memory(model, tasks):
    other = transformers_model(PICO, model)
    expert = other.encoder.block[1].layer[1].mlp.experts.expert_3.wi.weight
    assert expert.data_ptr() == model.experts[0].weights["wi"][3].data_ptr()
    made = ours.run(ours.new_engine(model.blocked(), 4), tasks, 4)
    alone: dict[str, list[int]] = {}
    together: dict[str, list[int]] = {}
    for batch in rival.batches(tasks, 1):
        alone |= rival.generate(other, batch)
    for batch in rival.batches(rival.ORDERS["by prompt length"](tasks), 8):
        together |= rival.generate(other, batch)
    assert made.tokens == alone == together
    assert {task.task_id: task.num_output for task in tasks} == {task: len(tokens) for task, tokens in alone.items()}
    assert all(len(made.token_s[task]) == len(tokens) for task, tokens in alone.items())


def test_tokens_over_capacity_are_counted(model):
    other = transformers_model(PICO, model)
    for module in other.modules():
        if hasattr(module, "expert_capacity"):
            module.expert_capacity = 1
    overflow = rival.Overflow(other)
    rival.generate(other, [BenchTask("a", (5, 5, 5, 5, 1), 1)])
    assert overflow.num_tokens > 0


def test_a_merged_model_keeps_the_mean_of_neighbours(model):
    made = merged(model, 0.25)
    assert [stack.num_kept for stack in made.experts] == [2] * 4
    torch.testing.assert_close(made.experts[0].weights["wi"][1], model.experts[0].weights["wi"][4:].mean(0))
    assert made.experts[0].index_map.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_model_at_four_bits_answers_near_the_one_that_it_was_rounded_from(model, monkeypatch):
    monkeypatch.setattr("services.model.families.four_bits.FEWEST_WEIGHTS", 1)
    made = four_bits(model)
    params = sum(stack.num_bytes() for stack in model.experts) / 4
    assert made.num_bytes / params * 8 <= 4.5
    assert made.layer_difference < 0.01
    prompts, targets = [[5, 9, 11, 1], [7, 1]], [[8, 9], [10]]
    near, exact = (each.teacher_forced(prompts, targets) for each in (model.with_experts(made.experts), model))
    assert 0 < float((near - exact).norm() / exact.norm()) < 0.3


def test_the_limit_counts_weights_touched_and_operations_of_every_call(model):
    recorders = []

    def new_recorder(shape):
        recorders.append(CallRecorder(shape))
        return recorders[-1]

    ours.run(ours.new_engine(model, 1, new_recorder), [BenchTask("a", (5, 9, 11, 1), 2)], 1)
    calls = recorders[0].calls
    assert [(call.is_prefill, call.num_tokens) for call in calls] == [(True, 4), (False, 1), (False, 1)]
    assert [call.num_experts_hit for call in calls[1:]] == [2, 2]
    every_byte, only_bytes = limit_of(model, calls, Machine(1.0, 1e30)), limit_of(model, calls, Machine(1e30, 1.0))
    assert every_byte.least_s == pytest.approx(every_byte.weight_bytes)
    assert only_bytes.least_s == pytest.approx(only_bytes.flops)
    expert_bytes = 4 * 2 * PICO.d_model * PICO.d_ff
    dense = sum(t.numel() for name, t in model.parameters().items() if ".experts." not in name and "position_bias" not in name)
    decoded = sum(t.numel() for n, t in model.parameters().items() if ".experts." not in n and n.startswith(("shared", "decoder")))
    assert every_byte.weight_bytes > 4 * dense + sum(call.num_experts_hit for call in calls) * expert_bytes
    assert every_byte.weight_bytes < 4 * (dense + decoded) + sum(call.num_experts_hit for call in calls) * expert_bytes


def test_even_routing_has_an_entropy_of_one():
    assert routing_entropy(np.full((3, 8), 5)) == pytest.approx(1.0)
    assert routing_entropy(5 * np.eye(8, dtype=np.int64)[:3]) == pytest.approx(0.0, abs=1e-9)


def test_lengths_are_those_of_the_quantiles_and_repeat_with_the_seed(tmp_path):
    lengths = built_in()
    for name, (prompt, answer) in QUANTILES.items():
        drawn = np.array(lengths.pairs[name])
        assert drawn.min(0).tolist() >= [prompt[0], answer[0]]
        assert np.abs(np.median(drawn, 0) - [prompt[3], answer[3]]).max() <= 3
    assert lengths.draw(9, 100, 4) == lengths.draw(9, 100, 4) != lengths.draw(9, 100, 5)


def test_lengths_of_a_file_are_counted_with_a_tokenizer(tmp_path):
    checkpoint = write_pico_checkpoint(tmp_path / "pico")
    file = tmp_path / "tasks.jsonl"
    file.write_text(json.dumps({"task": "left", "id": "1", "prompt": "w3 w4 w5", "references": ["w3 w4"]}) + "\n")
    assert of_data(file, checkpoint).pairs == {"left": ((4, 3),)}
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no directory named"):
        of_data(tmp_path / "empty", checkpoint)
