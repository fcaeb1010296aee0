"""`moedge bench fitted`, small: what its figures must say whatever the machine."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from loadgen.cli.main import app
from tests.unit.pico import write_pico_checkpoint
from tests.unit.serving_builders import write_tasks


def test_the_benchmark_of_fitted_experts_says_quality_bytes_and_times_of_all(tmp_path):
    write_pico_checkpoint(tmp_path / "model", d_ff=16, num_experts=4)
    tasks = write_tasks(tmp_path / "tasks.jsonl")
    places = ["--model", str(tmp_path / "model"), "--tasks", str(tasks), "--cache", str(tmp_path / "cache")]
    small = ["--shares", "30,60", "--items", "4", "--batches", "1,2", "--rounds", "2", "--dtype", "float32", "--json"]
    result = CliRunner().invoke(app, ["bench", "fitted", *places, *small])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert figures["schema_version"] == 1
    assert [memory["expert_share"] for memory in figures["memories"]] == [0.3, 0.6]
    for memory in figures["memories"]:
        assert memory["bits_per_weight"] == pytest.approx(32 * memory["expert_share"], rel=1e-3)
        for name in ("fitted", "fitted_elsewhere", "product", "unmerged", "compensated"):
            assert 0 <= memory[name] <= 1
        for name in ("fitted_times", "product_times"):
            assert [time["batch"] for time in memory[name]] == [1, 2]
            assert all(time["step_s"] > 0 and time["prefill_s"] > 0 for time in memory[name])
    assert figures["full_times"][0]["batch"] == 1
    told = CliRunner().invoke(app, ["bench", "fitted", *places, *small[:-1]])
    assert told.exit_code == 0
    assert "Decoding step" in told.stdout


@pytest.mark.parametrize("option", ["--shares", "--batches"])
def test_lists_that_hold_no_numbers_are_refused(option, tmp_path):
    write_pico_checkpoint(tmp_path / "model")
    tasks = write_tasks(tmp_path / "tasks.jsonl")
    result = CliRunner().invoke(
        app, ["bench", "fitted", "--model", str(tmp_path / "model"), "--tasks", str(tasks), "--cache", str(tmp_path), option, "many"]
    )
    assert result.exit_code == 2
    assert "not a list of numbers" in result.output
