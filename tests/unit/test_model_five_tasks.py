"""A trained checkpoint with known figures, where it is present: full answers, the zero-expert control, and what M-SMoE leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.model.build import Builder, BuildSettings
from services.model.calibration import measure
from services.model.checkpoint import read_base
from services.model.profile import share_bytes
from services.model.quantise import quantised, zeroed
from services.tasks.values import TaskItem, TaskSet

CHECKPOINT = Path(__file__).parents[2].parent / "shared" / "model" / "five-tasks"
NUM_ITEMS = 48

pytestmark = pytest.mark.skipif(not CHECKPOINT.is_dir(), reason=f"no checkpoint at {CHECKPOINT}")


@pytest.fixture(scope="module")
def tasks() -> TaskSet:
    rows = [json.loads(line) for line in (CHECKPOINT / "tasks.jsonl").read_text().splitlines()]
    items = tuple(
        TaskItem(row["task"], row["id"], row["prompt"], tuple(row["references"])) for row in rows if row["task"] in ("squad", "copa")
    )
    return TaskSet("five-tasks", items, {"squad": "exact_match", "copa": "exact_match"})


@pytest.fixture(scope="module")
def builder(tasks, tmp_path_factory) -> Builder:
    base = read_base(CHECKPOINT)
    return Builder(base, tasks, tmp_path_factory.mktemp("cache"), BuildSettings(profiled_items=96, measured_items=NUM_ITEMS))


def squad_score(builder: Builder, model) -> float:
    items = {"squad": builder.items("squad")[:NUM_ITEMS]}
    return measure(model, builder.base.tokenizer, items, builder.scorers, builder.calibration.max_answer_tokens).quality["squad"]


def test_the_full_model_answers_and_depends_on_its_experts(builder):
    assert squad_score(builder, builder.base.model) >= 0.98
    assert squad_score(builder, quantised(builder.base.model, 4)) >= 0.98
    assert squad_score(builder, zeroed(builder.base.model)) <= 0.25


def test_a_merge_for_one_task_keeps_more_of_it_than_a_merge_for_another(builder):
    budget_bytes = share_bytes(builder, 0.25)
    own, other = builder.build({"squad": 1.0}, budget_bytes), builder.build({"copa": 1.0}, budget_bytes)
    assert own.experts_kept == 96
    assert own.model_bytes == budget_bytes
    assert 0.3 <= own.quality["squad"] <= 0.6  # 0.433 over all 300 items
    assert other.quality["squad"] <= own.quality["squad"] - 0.1
    assert other.quality["copa"] >= 0.98
