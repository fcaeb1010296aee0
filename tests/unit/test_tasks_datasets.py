"""Readers of the public datasets: both forms give the same items, a bad row is one error that names file, line and field."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from services.tasks.datasets import dataset_names, read_dataset
from services.tasks.errors import RowError, SourceError

DATA = Path(__file__).parents[2].parent / "shared" / "data"

COPA = {"premise": "The rain fell.", "question": "effect", "label": 1}
COPA_PUBLISHED = {**COPA, "choice1": "It was dry.", "choice2": "It was wet.", "idx": 7}
COPA_NORMALISED = {**COPA, "choices": ["It was dry.", "It was wet."], "id": "copa-7"}
MULTIRC_PUBLISHED = {
    "idx": 3,
    "passage": {
        "text": "Ann ran. Bob sat.",
        "questions": [
            {"question": "Who ran?", "idx": 5, "answers": [{"text": "Ann", "idx": 0, "label": 1}, {"text": "Bob", "idx": 1, "label": 0}]}
        ],
    },
}
MULTIRC_NORMALISED = {"id": "3-5", "passage": "Ann ran. Bob sat.", "question": "Who ran?", "choices": ["Ann", "Bob"], "label": [1, 0]}
SQUAD_PUBLISHED = {
    "version": "1.1",
    "data": [
        {
            "title": "Prime_number",
            "paragraphs": [
                {
                    "context": "There are infinitely many.",
                    "qas": [
                        {
                            "id": "q1",
                            "question": "How many?",
                            "answers": [
                                {"text": "infinitely many", "answer_start": 10},
                                {"text": "many", "answer_start": 21},
                                {"text": "many", "answer_start": 21},
                            ],
                        }
                    ],
                }
            ],
        }
    ],
}
SQUAD_NORMALISED = {
    "id": "q1",
    "title": "Prime_number",
    "context": "There are infinitely many.",
    "question": "How many?",
    "answers": ["infinitely many", "many", "many"],
}
WIKIQA_HEADER = "QuestionID\tQuestion\tDocumentID\tDocumentTitle\tSentenceID\tSentence\tLabel"
WIKIQA_PUBLISHED = f"{WIKIQA_HEADER}\r\nQ1\twho ran\tD1\tRunning\tD1-0\tAnn ran .\t1\r\n"
WIKIQA_NORMALISED = {
    "id": "Q1/D1-0",
    "question": "who ran",
    "document_title": "Running",
    "sentence": "Ann ran .",
    "label": 1,
}
WINOGRANDE_PUBLISHED = {"qID": "w1", "sentence": "Ann fed Bea because _ was kind.", "option1": "Ann", "option2": "Bea", "answer": "1"}
WINOGRANDE_NORMALISED = {"id": "w1", "sentence": "Ann fed Bea because _ was kind.", "choices": ["Ann", "Bea"], "label": 0}

FORMS = {
    "copa": (json.dumps(COPA_PUBLISHED), COPA_NORMALISED),
    "multirc": (json.dumps(MULTIRC_PUBLISHED), MULTIRC_NORMALISED),
    "squad": (json.dumps(SQUAD_PUBLISHED), SQUAD_NORMALISED),
    "wikiqa": (WIKIQA_PUBLISHED, WIKIQA_NORMALISED),
    "winogrande": (json.dumps(WINOGRANDE_PUBLISHED), WINOGRANDE_NORMALISED),
}
EXPECTED = {
    "copa": [("copa-7", "copa effect : The rain fell. choice1 : It was dry. choice2 : It was wet.", ("choice2",))],
    "multirc": [
        ("3-5-0", "multirc : Who ran? answer : Ann", ("true",)),
        ("3-5-1", "multirc : Who ran? answer : Bob", ("false",)),
    ],
    "squad": [("q1", "squad Prime number : How many?", ("infinitely many", "many"))],
    "wikiqa": [("Q1/D1-0", "wikiqa : who ran sentence : Ann ran .", ("yes",))],
    "winogrande": [("w1", "winogrande : Ann fed Bea because _ was kind. option1 : Ann option2 : Bea", ("Ann",))],
}


def write(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("form", ["published", "normalised", "normalised, gzip"])
@pytest.mark.parametrize("name", sorted(FORMS))
def test_every_form_of_a_dataset_gives_the_same_items(tmp_path, name, form):
    published, normalised = FORMS[name]
    text = published if form == "published" else json.dumps(normalised) + "\n"
    items = read_dataset(name, write(tmp_path / ("a.gz" if "gzip" in form else "a.txt"), text))
    assert [(item.item_id, item.prompt, item.references) for item in items] == EXPECTED[name]
    assert {item.task_type for item in items} == {name}


def test_squad_is_read_when_the_document_is_spread_over_lines(tmp_path):
    assert len(read_dataset("squad", write(tmp_path / "dev.json", json.dumps(SQUAD_PUBLISHED, indent=2)))) == 1


def test_a_template_puts_the_passage_into_the_prompt(tmp_path):
    (item,) = read_dataset("squad", write(tmp_path / "a.jsonl", json.dumps(SQUAD_NORMALISED)), "context")
    assert item.prompt.endswith("context : There are infinitely many.")


def without(row: dict, field: str) -> dict:
    return {key: value for key, value in row.items() if key != field}


BAD_ROWS = [
    ("copa", json.dumps(without(COPA_PUBLISHED, "label")), "label: missing"),
    ("copa", json.dumps({**COPA_PUBLISHED, "label": 2}), "label: must be a whole number"),
    ("copa", json.dumps({**COPA_PUBLISHED, "question": "why"}), "question: must be"),
    ("copa", '{"premise": "cut', "not a JSON object"),
    ("multirc", json.dumps({**MULTIRC_NORMALISED, "label": [1]}), "label: must have one entry"),
    ("multirc", json.dumps({"idx": 1, "passage": {"text": "a"}}), "passage.questions: missing"),
    ("squad", json.dumps({**SQUAD_NORMALISED, "answers": []}), "answers: must be a list"),
    ("squad", json.dumps({"version": "1.1", "data": [{"title": "A"}]}), "paragraphs: missing"),
    ("squad", '{"version": "1.1", "data": [', "not a JSON document"),
    ("wikiqa", f"{WIKIQA_HEADER}\nQ1\twho ran\n", "2 columns where 7"),
    ("wikiqa", "a\tb\nc\td\n", "the header must be"),
    ("winogrande", json.dumps({**WINOGRANDE_PUBLISHED, "answer": ""}), "answer: missing"),
    ("winogrande", json.dumps({**WINOGRANDE_PUBLISHED, "sentence": "no blank"}), "sentence: has no blank"),
]


@pytest.mark.parametrize(("name", "text", "complaint"), BAD_ROWS)
def test_a_bad_row_is_one_error_with_file_line_and_field(tmp_path, name, text, complaint):
    path = write(tmp_path / "bad.txt", text)
    with pytest.raises(RowError, match=complaint) as caught:
        read_dataset(name, path)
    assert str(caught.value).startswith(f"{path}:")
    assert "\n" not in str(caught.value)


def test_the_line_of_a_bad_row_is_its_line_in_the_file(tmp_path):
    path = write(tmp_path / "bad.jsonl", json.dumps(COPA_PUBLISHED) + "\n\n" + json.dumps(without(COPA_PUBLISHED, "premise")) + "\n")
    with pytest.raises(RowError, match=r"bad.jsonl:3: premise: missing"):
        read_dataset("copa", path)


@pytest.mark.parametrize("content", [b"", b"\n\n"])
def test_an_empty_file_is_refused(tmp_path, content):
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    with pytest.raises(SourceError, match="no copa item"):
        read_dataset("copa", path)


def test_a_damaged_gzip_file_is_refused(tmp_path):
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(COPA_PUBLISHED).encode() * 50)[:40])
    with pytest.raises(SourceError, match="damaged gzip"):
        read_dataset("copa", path)


def test_unknown_names_are_refused_with_the_known_ones(tmp_path):
    with pytest.raises(SourceError, match="copa, multirc, squad, wikiqa, winogrande"):
        read_dataset("boolq", tmp_path)
    with pytest.raises(SourceError, match="context, short"):
        read_dataset("squad", tmp_path, "long")


@pytest.mark.skipif(not DATA.is_dir(), reason="the real datasets are not beside this checkout")
@pytest.mark.parametrize(
    ("name", "file", "num_items"),
    [
        ("copa", "copa/dev.jsonl.gz", 100),
        ("multirc", "multirc/train.jsonl.gz", 4_995),
        ("squad", "squad/dev.jsonl.gz", 10_570),
        ("wikiqa", "wikiqa/dev.jsonl.gz", 2_733),
        ("winogrande", "winogrande/dev.jsonl.gz", 1_267),
    ],
)
def test_the_real_datasets_are_read_whole(name, file, num_items):
    items = read_dataset(name, DATA / file)
    assert len(items) == len({item.item_id for item in items}) == num_items
    assert all(item.prompt and item.references for item in items)


def test_the_files_are_the_registry():
    assert dataset_names() == tuple(sorted(FORMS))
