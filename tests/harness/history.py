"""What a fault test leaves behind and how it is written: calls as their users saw them, faults, events. JSON lines; judges nothing.

Instants are seconds on the recorder's monotonic clock.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from moedge.v1 import events_pb2

OK = "OK"
KILL_TAKES_S = 0.5  # from asking for a SIGKILL until the process is gone


def is_cut(status: str, reason: str, accepted: bool) -> bool:
    """gRPC resets a call that reaches a server in the very moment in which it stops listening; nothing was begun."""
    return status == "CANCELLED" and reason == "TRANSPORT" and not accepted


@dataclass(frozen=True, slots=True)
class Try:
    """One RPC of a call that did not end it: what a user who retries met on the way."""

    began_at_s: float
    ended_at_s: float
    status: str
    reason: str = ""
    accepted: bool = False  # an edge had begun the task
    task_id: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """One call as its user saw it. Every call is a user of its own, so its events are found although it was never told a task id."""

    call_id: str
    sent_at_s: float
    deadline_at_s: float
    end_at_s: float | None  # None: it never ended
    status: str = OK
    task_id: str = ""
    edge_id: str = ""
    version: str = ""
    attempts: int = 0
    question: str = ""
    answer: str = ""  # as streamed; of one version, the same question always has the same
    summary: str = ""  # the answer as the last message repeats it
    intended_at_s: float | None = None
    first_token_at_s: float | None = None
    reason: str = ""  # of a status that is not OK
    accepted: bool = False  # the last try was told which edge serves it
    tries: tuple[Try, ...] = ()  # before the last one

    @property
    def latency_s(self) -> float:
        """From the intended send, so that a stalled recorder hides nothing."""
        assert self.end_at_s is not None
        return self.end_at_s - (self.sent_at_s if self.intended_at_s is None else self.intended_at_s)

    @property
    def last_began_at_s(self) -> float:
        """When the try that ended the call was sent, at the earliest."""
        return self.tries[-1].ended_at_s if self.tries else self.sent_at_s

    @property
    def refusals(self) -> tuple[Try, ...]:
        """Every try that did not answer, the last one included."""
        if self.status == OK or self.end_at_s is None:
            return self.tries
        return (*self.tries, Try(self.last_began_at_s, self.end_at_s, self.status, self.reason, self.accepted, self.task_id))

    @property
    def tokens_sha(self) -> str:
        return hashlib.sha256(self.answer.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Fault:
    """Calls that end within it may fail. Those in flight when it kills a broker may fail whatever became of their tasks."""

    began_at_s: float
    ended_at_s: float
    kills_broker: bool = False
    drains: bool = False  # SIGTERM: what had been accepted is finished, so no accepted try fails
    name: str = ""

    def excuses(self, end_at_s: float) -> bool:
        return self.began_at_s <= end_at_s <= self.ended_at_s

    def orphans(self, call: Call) -> bool:
        """Whether the broker died while it had this call."""
        if not self.kills_broker or call.end_at_s is None:
            return False
        return call.sent_at_s <= self.began_at_s + KILL_TAKES_S and self.began_at_s <= call.end_at_s


def write_calls(path: Path, calls: Iterable[Call]) -> None:
    _write(path, (_call_line(call) for call in calls))


def read_calls(path: Path) -> list[Call]:
    return [_call(line) for line in _lines(path)]


def write_faults(path: Path, faults: Iterable[Fault]) -> None:
    _write(path, (dataclasses.asdict(fault) for fault in faults))


def read_faults(path: Path) -> list[Fault]:
    return [Fault(**line) for line in _lines(path)]


def write_events(path: Path, events: Iterable[events_pb2.TaskEvent]) -> None:
    _write(path, ({"value": base64.b64encode(event.SerializeToString()).decode()} for event in events))


def read_events(path: Path) -> list[events_pb2.TaskEvent]:
    return [events_pb2.TaskEvent.FromString(base64.b64decode(line["value"])) for line in _lines(path)]


def _call_line(call: Call) -> dict[str, object]:
    return {**dataclasses.asdict(call), "tokens_sha": call.tokens_sha}


def _call(line: dict) -> Call:
    line.pop("tokens_sha")
    tries = tuple(Try(**met) for met in line.pop("tries"))
    return Call(**line, tries=tries)


def _write(path: Path, lines: Iterable[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def _lines(path: Path) -> Iterator[dict]:
    with path.open() as file:
        for line in file:
            yield json.loads(line)
