"""`moedge merge --compare` on a pico model: one JSON object, a plot, and items never both fitted to and scored."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from loadgen.cli.compare import split
from loadgen.cli.main import app
from tests.unit.pico import pico_tasks, write_pico_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = write_pico_checkpoint(tmp_path_factory.mktemp("pico"))
    rows = [{"task": i.task_type, "id": i.item_id, "prompt": i.prompt, "references": list(i.references)} for i in pico_tasks(10).items]
    (directory / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def run(*arguments: str):
    return CliRunner().invoke(app, ["merge", "--compare", *arguments])


def test_a_file_without_splits_is_cut_into_even_and_odd_lines(model):
    calibration, scored = split(str(model / "tasks.jsonl"), 300)
    lines = [json.loads(line)["id"] for line in (model / "tasks.jsonl").read_text().splitlines()]
    assert [item.item_id for item in calibration.items] == lines[1::2]
    assert [item.item_id for item in scored.items] == lines[::2]


def test_the_toy_world_is_compared_on_its_own_splits():
    calibration, scored = split("toy", 20)
    assert not {item.prompt for item in calibration.items} & {item.prompt for item in scored.items}
    assert len(scored.items) == 20 * len(scored.task_types)


def test_every_point_is_scored_within_its_room_and_drawn(model, tmp_path):
    names = "fitted,m-smoe,rounded"
    result = run(
        "--model", str(model), "--task", "left", "--out", str(tmp_path), "--compressions", names, "--budgets", "4,0.5", "--threads", "1",
        "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    (comparison,) = told["comparisons"]
    assert comparison["task_type"] == "left"
    points = comparison["points"]
    assert {point["method"] for point in points} == set(names.split(","))
    assert all(point["bits_per_weight"] <= point["budget_bits"] for point in points if point["budget_bits"] is not None)
    assert [point["bits"] for point in points if point["method"] == "rounded"] == [8, 4, 3, 2, 1]
    assert all(0 <= point["score"] <= 1 for point in points)
    assert (tmp_path / "compare_left.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "compare.json").read_text())["comparisons"] == told["comparisons"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--compressions", "fited"), "did you mean fitted"),
        (("--task", "middle"), "'middle' has no items"),
        (("--budgets", "4,x"), "not a list of bits"),
    ],
)
def test_what_cannot_be_compared_is_told_before_any_work(model, tmp_path, arguments, message):
    result = run("--model", str(model), "--out", str(tmp_path), *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_merge_without_compare_still_needs_a_task_and_a_budget(model, tmp_path):
    result = CliRunner().invoke(app, ["merge", "--model", str(model), "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "task and budget_bytes" in result.stderr
