"""COPA (choice of plausible alternatives): which of two sentences is the cause or the effect of a third.

Reads SuperGLUE's jsonl (`premise, question, choice1, choice2, label, idx`) and the normalised form (`premise, question, choices,
label, id`).
"""

from __future__ import annotations

from pathlib import Path

from services.tasks.rows import Row, json_rows
from services.tasks.values import TaskItem

SCORER = "accuracy"
TEMPLATES = {"short": "copa {question} : {premise} choice1 : {choice1} choice2 : {choice2}"}


def read(path: Path, template: str) -> tuple[TaskItem, ...]:
    return tuple(_item(row, template) for row in json_rows(path))


def _item(row: Row, template: str) -> TaskItem:
    if "choices" in row.values:
        choices = row.texts("choices")
        if len(choices) != 2:
            raise row.error("choices", f"must be two, not {len(choices)}")
        item_id = row.text("id")
    else:
        choices = (row.text("choice1"), row.text("choice2"))
        item_id = f"copa-{row.number('idx')}"
    if "label" not in row.values:
        raise row.error("label", "missing: SuperGLUE's test file has no labels; use train.jsonl or val.jsonl")
    question = row.text("question")
    if question not in ("cause", "effect"):
        raise row.error("question", f'must be "cause" or "effect", not {question!r}')
    label = row.number("label", below=2)
    prompt = template.format(question=question, premise=row.text("premise"), choice1=choices[0], choice2=choices[1])
    return TaskItem("copa", item_id, prompt, (f"choice{label + 1}",))
