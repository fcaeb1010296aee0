"""SQuAD v1.1: a question about a passage, answered by a span of it; every annotator's answer is accepted.

Reads the official JSON (`{"data": [...]}`, one document) and the normalised jsonl (one question a line). The short prompt is closed-book.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from services.tasks.errors import RowError
from services.tasks.rows import Row, json_rows, read_text
from services.tasks.values import TaskItem

SCORER = "f1"
TEMPLATES = {
    "short": "squad {title} : {question}",
    "context": "squad {title} : {question} context : {context}",
}


def read(path: Path, template: str) -> tuple[TaskItem, ...]:
    document = _document(path)
    if document is not None:
        return tuple(_published(document, template))
    return tuple(_item(row, row.text("title"), row.text("context"), row.texts("answers"), template) for row in json_rows(path))


def _document(path: Path) -> Row | None:
    """The official file is one JSON document with `data`; the normalised one has many lines, each a row."""
    text = read_text(path)
    first_line = text.lstrip()[:200].split("\n", 1)[0]
    if '"data"' not in text[:200] and '"version"' not in first_line and first_line.strip() != "{":
        return None
    try:
        return Row(path, 1, {}).nested(json.loads(text), "document")
    except ValueError as error:
        line = getattr(error, "lineno", 1)
        raise RowError(path, line, None, f"not a JSON document ({error}); fetch the file again") from error


def _published(document: Row, template: str) -> Iterator[TaskItem]:
    for a, article_value in enumerate(document.items("data")):
        article = document.nested(article_value, f"data[{a}]")
        for p, paragraph_value in enumerate(article.items("paragraphs")):
            paragraph = article.nested(paragraph_value, f"paragraphs[{p}]")
            for q, question_value in enumerate(paragraph.items("qas")):
                question = paragraph.nested(question_value, f"qas[{q}]")
                answers = tuple(question.nested(answer, f"answers[{n}]").text("text") for n, answer in enumerate(question.items("answers")))
                if not answers:
                    raise question.error("answers", "empty: unanswerable questions (SQuAD 2.0) are not supported; use v1.1")
                yield _item(question, article.text("title"), paragraph.text("context"), answers, template)


def _item(row: Row, title: str, context: str, answers: tuple[str, ...], template: str) -> TaskItem:
    prompt = template.format(title=title.replace("_", " "), question=row.text("question").strip(), context=context)
    return TaskItem("squad", row.text("id"), prompt, tuple(dict.fromkeys(answers)))
