"""WinoGrande 1.1: which of two names fills the blank `_` of a sentence.

Reads the published jsonl (`qID, sentence, option1, option2, answer` with "1" or "2") and the normalised one (`choices, label`).
"""

from __future__ import annotations

from pathlib import Path

from services.tasks.rows import Row, json_rows
from services.tasks.values import TaskItem

SCORER = "accuracy"
TEMPLATES = {"short": "winogrande : {sentence} option1 : {option1} option2 : {option2}"}


def read(path: Path, template: str) -> tuple[TaskItem, ...]:
    return tuple(_item(row, template) for row in json_rows(path))


def _item(row: Row, template: str) -> TaskItem:
    if "choices" in row.values:
        options = row.texts("choices")
        if len(options) != 2:
            raise row.error("choices", f"must be two, not {len(options)}")
        item_id, right = row.text("id"), row.number("label", below=2)
    else:
        options = (row.text("option1"), row.text("option2"))
        item_id, right = row.text("qID"), _published_answer(row)
    sentence = row.text("sentence")
    if "_" not in sentence:
        raise row.error("sentence", "has no blank `_`")
    prompt = template.format(sentence=sentence, option1=options[0], option2=options[1])
    return TaskItem("winogrande", item_id, prompt, (options[right],))


def _published_answer(row: Row) -> int:
    answer = row.values.get("answer", "")
    if answer in ("1", "2"):
        return int(str(answer)) - 1
    if not answer:
        raise row.error("answer", "missing: the test file has no labels; use a train file or dev.jsonl")
    raise row.error("answer", f'must be "1" or "2", not {answer!r}')
