"""A process on a core of its own, so that what it takes and what it adds are its own. Starts, watches and ends it; speaks to no one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from services.runtime.errors import RuntimeFault

ENDED_WITHIN_S = 10.0
LAST_LINES = 3


class ProcessError(RuntimeFault):
    """A process of a benchmark did not do what it is for; the message has the last that it said."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Which core is measured, and which are left to everything else; empty where processes cannot be pinned."""

    measured: frozenset[int]
    others: frozenset[int]


def cores() -> Cores:
    """The last core that this process may use, and those before it (the same one where there is but one)."""
    if not hasattr(os, "sched_getaffinity"):
        return Cores(frozenset(), frozenset())
    usable = sorted(os.sched_getaffinity(0))
    return Cores(frozenset(usable[-1:]), frozenset(usable[:-1] or usable))


@contextmanager
def kept_to(chosen: frozenset[int]) -> Iterator[None]:
    """This thread, and every thread and process that it starts meanwhile, run on the chosen cores."""
    if not chosen:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, chosen)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Pinned:
    """`with Pinned(...)`: what it writes goes to `log`; it is asked to end on leaving, and made to."""

    def __init__(self, name: str, command: Sequence[str], chosen: frozenset[int], log: Path, variables: Mapping[str, str]) -> None:
        self._name = name
        self._command = list(command)
        self._chosen = chosen
        self._log = log
        self._variables = dict(variables)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Pinned:
        with self._log.open("wb") as log, kept_to(self._chosen):
            self._process = subprocess.Popen(self._command, env=self._variables, stdout=log, stderr=log, start_new_session=True)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(ENDED_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def cpu_s(self) -> float:
        """Computed so far, by all its threads."""
        assert self._process is not None
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    @property
    def rss_bytes(self) -> int:
        assert self._process is not None
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def check(self) -> None:
        """Raises `ProcessError` where it no longer runs."""
        assert self._process is not None
        if self._process.poll() is not None:
            raise self.trouble("ended")

    def trouble(self, what: str) -> ProcessError:
        said = self._log.read_text(errors="replace").splitlines()[-LAST_LINES:]
        return ProcessError(f"the {self._name} {what}: {' / '.join(said) or 'it said nothing'}")


def moedge() -> list[str]:
    """The `moedge` command of this installation, as words."""
    installed = Path(sys.executable).with_name("moedge")
    return [str(installed)] if installed.exists() else [sys.executable, "-c", "from loadgen.cli.main import app; app()"]
