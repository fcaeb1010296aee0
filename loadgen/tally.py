"""Running figures of a replay for its live view: counts, quality and positive cost so far, in all and by edge.

Final figures come from the records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from loadgen.results import EdgeSample, Finished, Outcome


@dataclass(slots=True)
class _Sums:
    tasks: int = 0
    scored: int = 0
    score: float = 0.0

    @property
    def mean(self) -> float | None:
        return self.score / self.scored if self.scored else None


@dataclass(frozen=True, slots=True)
class EdgeProgress:
    """One row of the live table."""

    sample: EdgeSample
    tasks: int
    quality: float | None


@dataclass(frozen=True, slots=True)
class Progress:
    """What a view shows at one instant. `positive_cost` and `quality` are means over the tasks completed so far."""

    name: str
    elapsed_s: float
    planned_s: float
    planned: int
    sent: int
    completed: int
    failed: int
    rejected: int
    late_share: float
    positive_cost: float | None
    quality: float | None
    mix: Mapping[str, float]
    edges: tuple[EdgeProgress, ...]

    @property
    def in_flight(self) -> int:
        return self.sent - self.completed - self.failed - self.rejected


@dataclass(slots=True)
class Tally:
    """Mutable, owned by one replay. Cost is the positive cost of a task: completion_time_s + alpha · quality_scale · (1 - quality)."""

    quality_scale: float
    sent: int = 0
    late: int = 0
    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    _cost: float = 0.0
    _all: _Sums = field(default_factory=_Sums)
    _edges: dict[str, _Sums] = field(default_factory=dict)

    def add_sent(self, *, late: bool) -> None:
        self.sent += 1
        self.late += late

    def add(self, record: Finished) -> None:
        self.outcomes[record.outcome] += 1
        if record.outcome is not Outcome.COMPLETED:
            return
        score = record.score or 0.0
        self._cost += record.latency_s + record.alpha * self.quality_scale * (1.0 - score)
        for sums in (self._all, self._edges.setdefault(record.edge_id, _Sums())):
            sums.tasks += 1
            sums.scored += 1
            sums.score += score

    def progress(
        self, name: str, elapsed_s: float, planned_s: float, planned: int, mix: Mapping[str, float], samples: tuple[EdgeSample, ...]
    ) -> Progress:
        completed = self.outcomes[Outcome.COMPLETED]
        empty = _Sums()
        rows = [(sample, self._edges.get(sample.edge_id, empty)) for sample in samples]
        return Progress(
            name=name,
            elapsed_s=elapsed_s,
            planned_s=planned_s,
            planned=planned,
            sent=self.sent,
            completed=completed,
            failed=self.outcomes[Outcome.FAILED],
            rejected=self.outcomes[Outcome.REJECTED],
            late_share=self.late / self.sent if self.sent else 0.0,
            positive_cost=self._cost / completed if completed else None,
            quality=self._all.mean,
            mix=mix,
            edges=tuple(EdgeProgress(sample, sums.tasks, sums.mean) for sample, sums in rows),
        )
