"""Errors of the task sets.

TasksError
├── SourceError          a task source that cannot be opened: a path, a name or a split that is not there
└── RowError             one row of a file that cannot be used: names file, line, field and the cure
"""

from __future__ import annotations

from pathlib import Path


class TasksError(Exception):
    """Root of everything the task sets raise on bad input."""


class SourceError(TasksError):
    pass


class RowError(TasksError):
    def __init__(self, path: Path, line: int, field: str | None, problem: str) -> None:
        where = f"{path}:{line}"
        super().__init__(f"{where}: {field}: {problem}" if field else f"{where}: {problem}")
        self.path = path
        self.line = line
        self.field = field
