"""Request traces: when requests arrived and how long they were. No text is in them, and no task types: those are drawn elsewhere.

Reads, plain or gzip: our normalised CSV (`arrival_s, prompt_tokens, output_tokens`), Azure LLM 2023 (`TIMESTAMP, ContextTokens,
GeneratedTokens`), BurstGPT (`Timestamp, ..., Request tokens, Response tokens`) and Mooncake's jsonl (`timestamp, input_length,
output_length`).
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.tasks.errors import TasksError
from services.tasks.rows import numbered_lines


class TraceError(TasksError):
    """A trace that cannot be used; the message names file, line and the cure."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in order of arrival; the first arrives at 0."""

    name: str
    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def span_s(self) -> float:
        return float(self.arrival_s[-1])


@dataclass(frozen=True, slots=True)
class _Layout:
    """Which columns a published trace has, and how its time reads in seconds."""

    arrival: str
    prompt: str
    output: str
    seconds: Callable[[str], float]


def _stamp(text: str) -> float:
    """'2023-11-16 18:17:03.9799600' as seconds; a zone may follow, UTC otherwise."""
    whole, _, rest = text.partition(".")
    digits = len(rest) - len(rest.lstrip("0123456789"))
    moment = datetime.fromisoformat(whole + rest[digits:])
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.timestamp() + (float(f"0.{rest[:digits]}") if digits else 0.0)


_CSV_LAYOUTS = (
    _Layout("arrival_s", "prompt_tokens", "output_tokens", float),
    _Layout("TIMESTAMP", "ContextTokens", "GeneratedTokens", _stamp),
    _Layout("Timestamp", "Request tokens", "Response tokens", float),
)
_MOONCAKE = _Layout("timestamp", "input_length", "output_length", lambda text: float(text) / 1000)


def read_trace(path: Path) -> Trace:
    """The whole trace, or a `TraceError` for its first bad row. Rows out of order are sorted by arrival."""
    try:
        rows = list(_rows(path))
    except TraceError:
        raise
    except TasksError as error:
        raise TraceError(str(error)) from error
    if not rows:
        raise TraceError(f"{path}: no request in it; a header line and one row a request are expected")
    arrivals, prompts, outputs = (np.array(column) for column in zip(*rows, strict=True))
    order = np.argsort(arrivals, kind="stable")
    arrival_s = arrivals[order] - arrivals[order[0]]
    return Trace(path.name, arrival_s.astype(np.float64), prompts[order].astype(np.int64), outputs[order].astype(np.int64))


def _rows(path: Path) -> Iterator[tuple[float, int, int]]:
    lines = numbered_lines(path)
    number, first = next(lines, (0, ""))
    if not number:
        return
    if first.lstrip().startswith("{"):
        yield _json_row(path, number, first)
        for number, line in lines:
            yield _json_row(path, number, line)
        return
    header = [cell.strip() for cell in next(csv.reader([first]))]
    layout = next((known for known in _CSV_LAYOUTS if {known.arrival, known.prompt, known.output} <= set(header)), None)
    if layout is None:
        known_headers = "; ".join(f"{known.arrival}, {known.prompt}, {known.output}" for known in _CSV_LAYOUTS)
        raise TraceError(
            f"{path}:{number}: unknown columns {', '.join(header)}; a trace has one of: {known_headers}; or is Mooncake's jsonl"
        )
    for number, line in lines:
        cells = next(csv.reader([line]))
        if len(cells) != len(header):
            raise TraceError(
                f"{path}:{number}: {len(cells)} columns where the header has {len(header)}; the row is cut or broken: fix or delete it"
            )
        yield _values(path, number, dict(zip(header, cells, strict=True)), layout)


def _json_row(path: Path, number: int, line: str) -> tuple[float, int, int]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise TraceError(f"{path}:{number}: not a JSON object ({error}); fix or delete the row") from error
    if not isinstance(value, dict):
        raise TraceError(f"{path}:{number}: a JSON object is expected, not {type(value).__name__}")
    return _values(path, number, {key: str(cell) for key, cell in value.items()}, _MOONCAKE)


def _values(path: Path, number: int, cells: Mapping[str, str], layout: _Layout) -> tuple[float, int, int]:
    for name in (layout.arrival, layout.prompt, layout.output):
        if name not in cells:
            raise TraceError(f"{path}:{number}: {name}: missing; fix or delete the row")
    try:
        arrival_s = layout.seconds(cells[layout.arrival].strip())
    except ValueError:
        arrival_s = math.nan
    if not math.isfinite(arrival_s):
        raise TraceError(f"{path}:{number}: {layout.arrival}: {cells[layout.arrival]!r} is no time; fix or delete the row")
    return arrival_s, _count(path, number, layout.prompt, cells), _count(path, number, layout.output, cells)


def _count(path: Path, number: int, name: str, cells: Mapping[str, str]) -> int:
    text = cells[name].strip()
    if not text.isascii() or not text.isdigit():
        raise TraceError(f"{path}:{number}: {name}: {cells[name]!r} is no count of tokens; fix or delete the row")
    return int(text)
