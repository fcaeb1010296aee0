"""The table of a fault run: a row for each fault with what it came to and the figure it must meet; as text, Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from tests.harness.history import OK, Call, Fault

HEADINGS = ("fault", "sent", "answered", "refused", "lost", "dup.", "recovery", "p50 (quiet)", "p99 (quiet)", "must", "met")


@dataclass(frozen=True, slots=True)
class Latency:
    p50_s: float = 0.0
    p99_s: float = 0.0

    @classmethod
    def of(cls, calls: Sequence[Call]) -> Latency:
        taken = [call.latency_s for call in calls if call.status == OK]
        return cls(*np.percentile(taken, [50, 99]).tolist()) if taken else cls()


@dataclass(slots=True)
class Row:
    """`refused`: documented refusals that calls met within the fault's window, those included that a retry made good."""

    fault: str
    must: str
    sent: int = 0
    answered: int = 0
    refused: int = 0
    lost: int = 0  # tasks without a terminal event
    duplicated: int = 0  # tasks with several, after deduplication
    recovery_s: float | None = None  # slowest
    latency: Latency = field(default_factory=Latency)
    quiet: Latency = field(default_factory=Latency)
    met: bool = False

    def cells(self) -> tuple[str, ...]:
        share = f"{self.answered / self.sent:.1%}" if self.sent else "-"
        recovery = "-" if self.recovery_s is None else f"{self.recovery_s:.1f} s"
        times = [f"{1e3 * now_s:.0f} ({1e3 * quiet_s:.0f}) ms" for now_s, quiet_s in self._times()]
        counts = (str(self.sent), f"{self.answered} ({share})", str(self.refused), str(self.lost), str(self.duplicated))
        return (self.fault, *counts, recovery, *times, self.must, "yes" if self.met else "NO")

    def _times(self) -> tuple[tuple[float, float], ...]:
        return (self.latency.p50_s, self.quiet.p50_s), (self.latency.p99_s, self.quiet.p99_s)


def slowest_recovery_s(calls: Sequence[Call], faults: Sequence[Fault]) -> float:
    """From an injection to the last thing that users felt of it: a refusal within its window, or the answer of a task that was moved."""
    slowest = 0.0
    for fault in faults:
        felt = [met.ended_at_s for call in calls for met in call.refusals if fault.excuses(met.ended_at_s)]
        felt += [call.end_at_s for call in calls if call.attempts > 1 and call.end_at_s and fault.excuses(call.end_at_s)]
        slowest = max([slowest, *(at_s - fault.began_at_s for at_s in felt)])
    return slowest


def num_refused(calls: Sequence[Call], faults: Sequence[Fault]) -> int:
    return sum(any(fault.excuses(met.ended_at_s) for fault in faults) for call in calls for met in call.refusals)


def text(rows: Sequence[Row]) -> str:
    cells = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(len(line[n]) for line in cells) for n in range(len(HEADINGS))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells)


def markdown(rows: Sequence[Row]) -> str:
    lines = [HEADINGS, ("---",) * len(HEADINGS), *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(rows: Sequence[Row], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "faults.md").write_text(markdown(rows))
    (directory / "faults.json").write_text(json.dumps({"schema": 1, "faults": [asdict(row) for row in rows]}, indent=1))
