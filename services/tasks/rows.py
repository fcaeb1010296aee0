"""Rows of data files, plain or gzip, with their place in the file, so that a bad field is reported as file:line.

Knows text, JSON objects and their fields; knows nothing of any dataset.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from services.tasks.errors import RowError, SourceError


@dataclass(frozen=True, slots=True)
class Row:
    """One record and where it stands; the accessors raise `RowError` naming the field."""

    path: Path
    line: int
    values: Mapping[str, object]
    prefix: str = ""  # where a nested record sits, e.g. "passage."

    def error(self, field: str | None, problem: str) -> RowError:
        return RowError(self.path, self.line, f"{self.prefix}{field}" if field else None, problem)

    def value(self, field: str) -> object:
        if field not in self.values:
            raise self.error(field, f"missing; the row has {', '.join(sorted(self.values)) or 'no fields'}")
        return self.values[field]

    def text(self, field: str, blank: bool = False) -> str:
        value = self.value(field)
        if not isinstance(value, str) or not (blank or value.strip()):
            raise self.error(field, f"must be a text{'' if blank else ' that is not empty'}, not {value!r:.60}")
        return value

    def number(self, field: str, below: int | None = None) -> int:
        value = self.value(field)
        if isinstance(value, str) and value.strip().lstrip("-").isdigit():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0 or (below is not None and value >= below):
            limit = f" below {below}" if below is not None else ""
            raise self.error(field, f"must be a whole number from 0{limit}, not {value!r:.60}")
        return value

    def texts(self, field: str, blank: bool = False) -> tuple[str, ...]:
        value = self.value(field)
        if not isinstance(value, list) or not value or not all(isinstance(v, str) and (blank or v.strip()) for v in value):
            raise self.error(field, f"must be a list of texts that is not empty, not {value!r:.60}")
        return tuple(value)

    def items(self, field: str) -> tuple[object, ...]:
        value = self.value(field)
        if not isinstance(value, list):
            raise self.error(field, f"must be a list, not {value!r:.60}")
        return tuple(value)

    def nested(self, value: object, name: str) -> Row:
        if not isinstance(value, dict):
            raise self.error(name, f"must be an object, not {value!r:.60}")
        return Row(self.path, self.line, value, f"{self.prefix}{name}.")


def read_text(path: Path) -> str:
    """The whole file, `.gz` or plain, as UTF-8."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error}); give the path of a task file") from error
    try:
        return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{path}: damaged gzip file ({error}); fetch it again") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RowError(path, line, None, "not UTF-8 text; convert the file to UTF-8") from error


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, counted from 1."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        stripped = line.rstrip("\r")
        if stripped.strip():
            yield number, stripped


def json_rows(path: Path) -> Iterator[Row]:
    """One JSON object a line."""
    for number, line in numbered_lines(path):
        try:
            value = json.loads(line)
        except ValueError as error:
            raise RowError(path, number, None, f"not a JSON object ({error}); one object a line is expected") from error
        if not isinstance(value, dict):
            raise RowError(path, number, None, f"a JSON object is expected, not {type(value).__name__}")
        yield Row(path, number, value)
