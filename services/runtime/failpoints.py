"""Named steps of an update at which a test ends or holds the process: `NAME:kill`, `NAME:sleep=SECONDS`. They cost nothing unless set.

An update must come through the death of merger or worker at every one of them; `tests/connected/test_failpoints.py` kills at each.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass

WORKER_POINTS: Mapping[str, str] = {
    "manifest": "the manifest came, nothing is fetched yet",
    "chunk": "a chunk is on disk, its blob unfinished",
    "staged": "a blob came whole, it is not checked, synced and renamed yet",
    "stored": "every blob is in the store",
    "load": "before the tensors are read",
    "canary": "before the check prompts are answered",
    "commit": "before the pointer names the new version",
    "switch": "the pointer names the new version, the old one still serves",
    "ack": "the new version serves, nobody was told",
}
MERGER_POINTS: Mapping[str, str] = {
    "plan": "a build begins",
    "merge": "before experts are merged",
    "measure": "before the merged model is measured",
    "write": "before blobs are written",
    "keep": "blobs are written, the manifest is not",
    "manifest": "the build is done, nobody was told",
}


@dataclass(frozen=True, slots=True)
class Failpoint:
    """At most one a process. `sleep_s` None: the process ends without a last word."""

    name: str = ""
    sleep_s: float | None = None

    @classmethod
    def parse(cls, text: str, known: Mapping[str, str]) -> Failpoint:
        """Raises `ValueError` with the cure."""
        if not text:
            return cls()
        name, _, action = text.partition(":")
        if name not in known:
            raise ValueError(f"{name!r} is no failpoint here; there are {', '.join(known)}")
        if action == "kill":
            return cls(name)
        word, _, seconds = action.partition("=")
        try:
            held_s = float(seconds) if word == "sleep" else -1.0
        except ValueError:
            held_s = -1.0
        if not 0.0 <= held_s < float("inf"):
            raise ValueError(f"{action!r} is no action; write {name}:kill or {name}:sleep=SECONDS")
        return cls(name, held_s)

    def reached(self, name: str) -> None:
        """On a thread that may block."""
        if not self.name or name != self.name:
            return
        if self.sleep_s is None:
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Event().wait(self.sleep_s)

    async def passed(self, name: str) -> None:
        """On the event loop."""
        if name == self.name:
            await asyncio.to_thread(self.reached, name)


NO_FAILPOINT = Failpoint()
