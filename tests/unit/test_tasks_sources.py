"""What may stand after `--tasks`, and what each split of it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.tasks.errors import RowError, SourceError
from services.tasks.scoring import SCORERS
from services.tasks.sources import open_tasks, unseen


def write_jsonl(path: Path, num_each: int = 100, task_types: tuple[str, ...] = ("sum", "name")) -> Path:
    rows = [
        {"task": task_type, "id": f"{task_type}-{n}", "prompt": f"{task_type} {n} ?", "references": [str(n)]}
        for task_type in task_types
        for n in range(num_each)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_copa(path: Path, num_rows: int) -> None:
    row = {"premise": "p", "question": "cause", "choice1": "a", "choice2": "b", "label": 0}
    path.write_text("".join(json.dumps({**row, "idx": n, "premise": f"{path.stem} {n}"}) + "\n" for n in range(num_rows)))


def test_a_jsonl_file_is_scored_whole_and_calibrated_on_a_fixed_share_that_it_names(tmp_path):
    path = write_jsonl(tmp_path / "tasks.jsonl")
    scored, calibration = open_tasks(str(path), "heldout"), open_tasks(str(path), "calibration")
    assert len(scored.items) == 200
    assert [len(calibration.of_type(task_type)) for task_type in ("name", "sum")] == [25, 25]
    assert "25% of it for calibration, scored items included" in calibration.name
    assert open_tasks(str(path), "calibration") == calibration
    assert dict(scored.scorers) == {"sum": "exact_match", "name": "exact_match"}


def test_what_was_trained_on_can_be_left_out_of_what_is_scored(tmp_path):
    path = str(write_jsonl(tmp_path / "tasks.jsonl"))
    scored, calibration = open_tasks(path, "heldout"), open_tasks(path, "calibration")
    left = unseen(scored, calibration)
    assert len(left.items) == 150
    assert not {item.prompt for item in left.items} & {item.prompt for item in calibration.items}
    assert "without the calibration items" in left.name
    assert unseen(open_tasks("toy", "heldout"), calibration).name == "toy-heldout"


def test_a_small_type_keeps_enough_items_to_calibrate_on(tmp_path):
    assert len(open_tasks(str(write_jsonl(tmp_path / "tasks.jsonl", 20)), "calibration").of_type("sum")) == 16


def test_a_directory_of_a_dataset_has_its_own_splits(tmp_path):
    write_copa(tmp_path / "train.jsonl", 80)
    write_copa(tmp_path / "val.jsonl", 10)
    prompts = {
        split: {item.prompt for item in open_tasks(f"copa:{tmp_path}", split).items} for split in ("train", "calibration", "heldout")
    }
    assert [len(prompts[split]) for split in ("train", "calibration", "heldout")] == [80, 20, 10]
    assert prompts["calibration"] < prompts["train"]
    assert not prompts["calibration"] & prompts["heldout"]


def test_several_datasets_join_into_one_set(tmp_path):
    (tmp_path / "a").mkdir()
    write_copa(tmp_path / "a" / "dev.jsonl", 4)
    winogrande = {"qID": "w", "sentence": "A _ b", "option1": "x", "option2": "y", "answer": "2"}
    (tmp_path / "dev.jsonl").write_text(json.dumps(winogrande))
    task_set = open_tasks(f"copa:{tmp_path / 'a'},winogrande:{tmp_path / 'dev.jsonl'}", "heldout")
    assert task_set.task_types == ("copa", "winogrande")
    assert len(task_set.items) == 5
    assert set(task_set.scorers.values()) <= set(SCORERS)


def test_items_of_a_type_can_be_limited_with_the_same_sample_every_time(tmp_path):
    path = str(write_jsonl(tmp_path / "tasks.jsonl"))
    few = open_tasks(path, "all", items_per_type=7)
    assert [len(few.of_type(task_type)) for task_type in few.task_types] == [7, 7]
    assert open_tasks(path, "all", items_per_type=7) == few


def test_the_toy_world_has_disjoint_scored_and_calibration_prompts():
    heldout, calibration = open_tasks("toy", "heldout"), open_tasks("toy", "calibration")
    assert len(heldout.task_types) == 5
    assert not {item.prompt for item in heldout.items} & {item.prompt for item in calibration.items}


@pytest.mark.parametrize(("spec", "complaint"), [
    ("nothing.jsonl", "does not exist; give toy, a JSONL file, or copa:PATH"),
    ("boolq:x", "does not exist"),
    ("copa:", "is not DATASET"),
    ("copa:nowhere.jsonl", "cannot be read"),
    ("copa/long:x", "no prompt template of copa"),
])  # fmt: skip
def test_a_source_that_is_not_there_says_what_may_be_given(tmp_path, monkeypatch, spec, complaint):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=complaint):
        open_tasks(spec, "all")


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(SourceError, match="train, calibration, heldout, all"):
        open_tasks("toy", "test")  # type: ignore[arg-type]


@pytest.mark.parametrize(("row", "complaint"), [
    ({"id": "1", "prompt": "p", "references": ["r"]}, "task: missing"),
    ({"task": "t", "id": "1", "prompt": " ", "references": ["r"]}, "prompt: must be a text"),
    ({"task": "t", "id": "1", "prompt": "p", "references": "r"}, "references: must be a list"),
    ({"task": "t", "id": "0", "prompt": "p", "references": ["r"]}, "id: '0' stands in line 1 already"),
])  # fmt: skip
def test_a_bad_row_names_line_and_field(tmp_path, row, complaint):
    good = {"task": "t", "id": "0", "prompt": "p", "references": ["r"]}
    path = tmp_path / "tasks.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(RowError, match=rf"tasks.jsonl:2: {complaint}"):
        open_tasks(str(path), "all")
