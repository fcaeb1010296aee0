"""Feeds a recording of an engine's calls to a fresh engine and names every answer that is another. Run as `python -m loadgen.parity FILE`.

Recordings are made by brokers and controllers whose `record` setting names a file (`services/runtime/recording.py`). No clock is read
and nothing is sent: the recorded instants are the engine's time.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np

from services.core.merging.engine import MergeEngine
from services.core.merging.triggers import trigger
from services.core.offload.engine import offload_engine
from services.runtime.plain import from_plain, to_plain
from services.runtime.recording import CALLS, FORMAT, KEPT_TUPLES, MERGE, OFFLOAD

RELATIVE = 1e-9  # another numpy may add in another order
SHOWN = 20


class RecordingError(Exception):
    """A file that is no recording, or one of another format; the message names the line."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that the fresh engine gives otherwise."""

    line: int  # of the file
    call: str
    subject: str  # the task or edge that the call is about
    path: str  # of the value in the answer, e.g. `candidates[1].quality`
    recorded: object
    replayed: object

    def __str__(self) -> str:
        about = f"{self.call} {self.subject}".strip()
        return f"line {self.line}: {about}: {self.path or 'answer'} was {self.recorded!r}, is {self.replayed!r}"


@dataclass(slots=True)
class Parity:
    """What a replay of one recording showed."""

    kind: str
    num_calls: dict[str, int] = field(default_factory=dict)  # by name
    differences: list[Difference] = field(default_factory=list)


def replayed(path: Path) -> Parity:
    """Raises `RecordingError` for what is no recording."""
    with path.open(encoding="utf-8") as file:
        lines = _lines(file, path)
        head = next(lines, (1, {}))[1]
        if head.get("format") != FORMAT or head.get("engine") not in CALLS:
            raise RecordingError(f"{path}: line 1: not the head of a recording of format {FORMAT}")
        replay = _Replay(head["engine"], head["made_of"])
        for number, line in lines:
            try:
                replay.take(number, line)
            except (KeyError, TypeError, ValueError) as error:
                raise RecordingError(f"{path}: line {number}: {error!r} is missing or broken") from error
    return replay.parity


class _Replay:
    def __init__(self, kind: str, made_of: Mapping[str, Any]) -> None:
        self.parity = Parity(kind)
        self._engine = _MAKERS[kind](made_of)
        self._hints = {name: get_type_hints(getattr(type(self._engine), name)) for name in CALLS[kind]}
        self._members: dict[int, list[Any]] = {}  # of a tuple that no call has told the type of yet
        self._tuples: dict[int, tuple[Any, ...]] = {}

    def take(self, number: int, line: Mapping[str, Any]) -> None:
        if "members" in line:
            self._members = {line["tuple"]: line["members"]}
            self._tuples.pop(line["tuple"] - KEPT_TUPLES, None)
            return
        name = line["call"]
        hints = self._hints[name]
        given = {key: self._value(hints[key], value) for key, value in line["given"].items()}
        told = self._told(getattr(self._engine, name), given)
        self.parity.num_calls[name] = self.parity.num_calls.get(name, 0) + 1
        about = _subject(given)
        recorded = {"error": line["error"]} if "error" in line else {"answer": line["answer"]}
        self.parity.differences += [Difference(number, name, about, *found) for found in _differences(recorded, told)]

    def _value(self, kind: Any, told: Mapping[str, Any]) -> Any:
        """As it was given. A tuple is made once, so that the engine knows it by identity as the recorded one did."""
        if "value" in told:
            return from_plain(kind, told["value"])
        number = told["tuple"]
        if number not in self._tuples:
            member = kind if "at" in told else get_args(kind)[0]
            self._tuples[number] = tuple(from_plain(member, plain) for plain in self._members[number])
        members = self._tuples[number]
        return members[told["at"]] if "at" in told else members

    @staticmethod
    def _told(method: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return {"answer": to_plain(method(**given))}
        except Exception as error:  # whatever core raised live it has to raise here
            return {"error": f"{type(error).__name__}: {error}"}


def _offload(made_of: Mapping[str, Any]) -> Any:
    rng = np.random.default_rng(made_of["seed"])
    return offload_engine(made_of["policy_name"], quality_scale=made_of["quality_scale"], rng=rng, policy_options=made_of["policy_options"])


def _merge(made_of: Mapping[str, Any]) -> Any:
    waits = {name: value for name, value in made_of.items() if name in inspect.signature(MergeEngine).parameters and name != "trigger"}
    return MergeEngine(trigger(made_of["trigger"], **made_of["trigger_options"]), **waits)


_MAKERS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {OFFLOAD: _offload, MERGE: _merge}


def _subject(given: Mapping[str, Any]) -> str:
    for name in ("task", "window", "edge"):
        if name in given:
            return str(getattr(given[name], "task_id", None) or getattr(given[name], "edge_id", ""))
    return str(given.get("task_id") or given.get("edge_id") or "")


def _differences(recorded: Any, told: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Path, recorded and replayed value of each leaf that differs."""
    if isinstance(recorded, Mapping) and isinstance(told, Mapping) and recorded.keys() == told.keys():
        for key in recorded:
            step = "" if not path and key in ("answer", "error") else key
            yield from _differences(recorded[key], told[key], f"{path}.{step}".strip("."))
    elif isinstance(recorded, list) and isinstance(told, list) and len(recorded) == len(told):
        for n, (one, two) in enumerate(zip(recorded, told, strict=True)):
            yield from _differences(one, two, f"{path}[{n}]")
    elif not _equal(recorded, told):
        yield path, recorded, told


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, float) and isinstance(two, float):
        return math.isclose(one, two, rel_tol=RELATIVE, abs_tol=1e-12) or (math.isnan(one) and math.isnan(two))
    return bool(one == two)


def _lines(file: Iterator[str], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, text in enumerate(file, 1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise RecordingError(f"{path}: line {number}: not JSON ({error}); was the recording cut off?") from error
        yield number, line if isinstance(line, dict) else {}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="+", help="recordings of brokers or controllers")
    num_different = 0
    for path in parser.parse_args(arguments).file:
        parity = replayed(path)
        calls = ", ".join(f"{count} {name}" for name, count in sorted(parity.num_calls.items()))
        print(f"{path}: {parity.kind} engine, {calls}: {len(parity.differences)} differences")
        for difference in parity.differences[:SHOWN]:
            print(f"  {difference}")
        num_different += bool(parity.differences)
    return 1 if num_different else 0


if __name__ == "__main__":
    sys.exit(main())
