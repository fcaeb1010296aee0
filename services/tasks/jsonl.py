"""Plain task files: one JSON object a line, `{"task", "id", "prompt", "references"}`. Any task type, any number of them mixed."""

from __future__ import annotations

from pathlib import Path

from services.tasks.errors import RowError, SourceError
from services.tasks.rows import json_rows
from services.tasks.values import TaskItem


def read(path: Path) -> tuple[TaskItem, ...]:
    items: list[TaskItem] = []
    seen: dict[str, int] = {}
    for row in json_rows(path):
        item = TaskItem(row.text("task"), str(row.value("id")), row.text("prompt"), row.texts("references"))
        if item.item_id in seen:
            raise RowError(path, row.line, "id", f"{item.item_id!r} stands in line {seen[item.item_id]} already; ids must be unique")
        seen[item.item_id] = row.line
        items.append(item)
    if not items:
        raise SourceError(f"{path}: no task in it; one JSON object a line with task, id, prompt, references is expected")
    return tuple(items)
