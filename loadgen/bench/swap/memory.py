"""What a process's resident memory came to between two looks, seen by a thread of this one."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import psutil

EVERY_S = 0.004


class PeakMemory:
    """`with PeakMemory(pid) as peak`; `take_bytes` gives the largest seen since it was last taken."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._most_bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def take_bytes(self) -> int:
        taken = max(self._most_bytes, self._resident_bytes())
        self._most_bytes = 0
        return taken

    def _watch(self) -> None:
        while not self._ended.wait(EVERY_S):
            self._most_bytes = max(self._most_bytes, self._resident_bytes())

    def _resident_bytes(self) -> int:
        return int(self._process.memory_info().rss)
