"""WikiQA: whether a sentence answers a question.

Reads the published TSV (`QuestionID ... Label`, with its header line) and the normalised jsonl.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from services.tasks.errors import RowError, SourceError
from services.tasks.rows import Row, json_rows, numbered_lines
from services.tasks.values import TaskItem

SCORER = "accuracy"
TEMPLATES = {
    "short": "wikiqa : {question} sentence : {sentence}",
    "title": "wikiqa {title} : {question} sentence : {sentence}",
}
COLUMNS = ("QuestionID", "Question", "DocumentID", "DocumentTitle", "SentenceID", "Sentence", "Label")
_FIELDS = ("question_id", "question", "document_id", "document_title", "sentence_id", "sentence", "label")


def read(path: Path, template: str) -> tuple[TaskItem, ...]:
    return tuple(_item(row, template) for row in _rows(path))


def _rows(path: Path) -> Iterator[Row]:
    lines = numbered_lines(path)
    number, header = next(lines, (0, ""))
    if not number:
        raise SourceError(f"{path}: empty; a WikiQA file has a header line")
    if header.lstrip().startswith("{"):
        yield from json_rows(path)
        return
    if tuple(header.split("\t")) != COLUMNS:
        raise RowError(path, number, None, f"the header must be the columns {', '.join(COLUMNS)}, separated by tabs")
    for number, line in lines:
        cells = line.split("\t")
        if len(cells) != len(COLUMNS):
            raise RowError(path, number, None, f"{len(cells)} columns where {len(COLUMNS)} are expected; the row may be cut")
        values = dict(zip(_FIELDS, cells, strict=True))
        yield Row(path, number, {**values, "id": f"{values['question_id']}/{values['sentence_id']}"})


def _item(row: Row, template: str) -> TaskItem:
    answer = "yes" if row.number("label", below=2) else "no"
    prompt = template.format(question=row.text("question"), sentence=row.text("sentence"), title=row.text("document_title"))
    return TaskItem("wikiqa", row.text("id"), prompt, (answer,))
