"""Keeps every call into an engine of core as plain values, one JSON line a call, so that a day's decisions can be replayed.

A wrapper at the seam between a service's shell and core, there only when a setting names a file; it decides nothing. The reader is
`loadgen/parity.py`.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from services.runtime.errors import SettingsError
from services.runtime.plain import to_plain

logger = logging.getLogger(__name__)

FORMAT = 1
KEPT_TUPLES = 4  # of snapshots, most recent ones: a call names them by number
OFFLOAD, MERGE = "offload", "merge"
# What changes an engine, or what it answers. Reads that change nothing are not kept.
CALLS: Mapping[str, tuple[str, ...]] = {
    OFFLOAD: (
        "prepare", "decide", "explain", "started", "progressed", "finished", "withdrawn", "scored", "profiled", "wait_s",
    ),
    MERGE: ("deployed", "describe", "observe", "check", "satisfied", "failed", "postponed", "forget", "restore"),
}  # fmt: skip

EngineT = TypeVar("EngineT")


class Recording:
    """A file of at most `limit_bytes`; what comes after is not kept, and the log says so once."""

    def __init__(self, path: Path, limit_bytes: int, kind: str, made_of: Mapping[str, object]) -> None:
        """`made_of`: what an equal engine is made of. An existing file is written over."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"record: {path} cannot be written ({error.strerror or error}); name another file") from error
        self._path = path
        self._left_bytes = limit_bytes
        self._kind = kind
        self._tuples: list[tuple[int, tuple[object, ...]]] = []
        self._num_tuples = 0
        self._write({"format": FORMAT, "engine": kind, "made_of": to_plain(made_of)})

    def around(self, engine: EngineT) -> EngineT:
        """The engine, every call of which is kept; whatever else it has is its own."""
        return cast(EngineT, _Recorded(engine, {name: self._keeping(name, getattr(engine, name)) for name in CALLS[self._kind]}))

    def close(self) -> None:
        self._file.close()

    def _keeping(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(method)

        def kept(*args: Any, **kwargs: Any) -> Any:
            given = {key: self._given(value) for key, value in signature.bind(*args, **kwargs).arguments.items()}
            try:
                answer = method(*args, **kwargs)
            except Exception as error:
                self._write({"call": name, "given": given, "error": f"{type(error).__name__}: {error}"})
                raise
            self._write({"call": name, "given": given, "answer": to_plain(answer)})
            return answer

        return kept

    def _given(self, value: object) -> Any:
        """Engines know snapshots by identity: a tuple is written once and then named, and so is a member of one."""
        if isinstance(value, tuple) and value:
            return {"tuple": self._number(value)}
        for number, members in reversed(self._tuples):
            for at, member in enumerate(members):
                if member is value:
                    return {"tuple": number, "at": at}
        return {"value": to_plain(value)}

    def _number(self, value: tuple[object, ...]) -> int:
        for number, known in self._tuples:
            if known is value:
                return number
        self._num_tuples += 1
        self._tuples = [*self._tuples[1 - KEPT_TUPLES :], (self._num_tuples, value)]
        self._write({"tuple": self._num_tuples, "members": to_plain(value)})
        return self._num_tuples

    def _write(self, line: Mapping[str, object]) -> None:
        if self._file.closed:
            return
        text = json.dumps(line, separators=(",", ":")) + "\n"
        self._left_bytes -= len(text)
        if self._left_bytes < 0:
            logger.warning("%s is full: calls from here on are not recorded", self._path)
            self._file.close()
            return
        self._file.write(text)


class _Recorded:
    def __init__(self, engine: object, kept: Mapping[str, Callable[..., Any]]) -> None:
        self._engine = engine
        self.__dict__.update(kept)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)
