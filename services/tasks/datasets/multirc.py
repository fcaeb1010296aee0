"""MultiRC: whether a candidate answers a question about a passage; one item for each question-answer pair.

Reads SuperGLUE's jsonl (one passage a line, questions and answers nested) and the normalised form (one question a line).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from services.tasks.rows import Row, json_rows
from services.tasks.values import TaskItem

SCORER = "accuracy"
TEMPLATES = {
    "short": "multirc : {question} answer : {choice}",
    "passage": "multirc : {question} answer : {choice} passage : {passage}",
}


def read(path: Path, template: str) -> tuple[TaskItem, ...]:
    return tuple(item for row in json_rows(path) for item in _items(row, template))


def _items(row: Row, template: str) -> Iterator[TaskItem]:
    if "choices" in row.values:
        labels = row.items("label")
        choices = row.texts("choices", blank=True)  # the published train set has one blank answer
        if len(labels) != len(choices):
            raise row.error("label", f"must have one entry for each of the {len(choices)} choices, not {len(labels)}")
        for n, (choice, label) in enumerate(zip(choices, labels, strict=True)):
            pair = row.nested({"label": label}, f"choices[{n}]")
            yield _pair(pair, f"{row.text('id')}-{n}", row.text("question"), choice, row.text("passage"), template)
        return
    passage = row.nested(row.value("passage"), "passage")
    text = passage.text("text")
    for q, value in enumerate(passage.items("questions")):
        question = passage.nested(value, f"questions[{q}]")
        for a, answer_value in enumerate(question.items("answers")):
            answer = question.nested(answer_value, f"answers[{a}]")
            pair_id = f"{row.number('idx')}-{question.number('idx')}-{a}"
            yield _pair(answer, pair_id, question.text("question"), answer.text("text", blank=True), text, template)


def _pair(labelled: Row, pair_id: str, question: str, choice: str, passage: str, template: str) -> TaskItem:
    if "label" not in labelled.values:
        raise labelled.error("label", "missing: SuperGLUE's test file has no labels; use train.jsonl or val.jsonl")
    answer = "true" if labelled.number("label", below=2) else "false"
    return TaskItem("multirc", pair_id, template.format(question=question, choice=choice, passage=passage), (answer,))
