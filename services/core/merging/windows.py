"""What an edge reported since the last decision: a sum of activation reports that can still be split by age.

Holds a bounded number of reports; when there are more, neighbours are added together, which loses resolution and no count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from services.core.merging.errors import CountsError
from services.core.merging.values import ActivationWindow, Counts, Frequencies, normalised

MAX_REPORTS = 64


@dataclass(frozen=True, slots=True, eq=False)
class CountWindow:
    """Reports of one edge and one version, oldest first, of a model with `shape` (num_layers, num_experts)."""

    shape: tuple[int, int]
    reports: tuple[ActivationWindow, ...] = ()

    @property
    def counts(self) -> Counts:
        return np.sum([r.counts for r in self.reports], axis=0, dtype=np.int64) if self.reports else np.zeros(self.shape, dtype=np.int64)

    @property
    def frequencies(self) -> Frequencies:
        return normalised(self.counts)

    @property
    def num_tasks(self) -> int:
        return sum(r.num_tasks for r in self.reports)

    @property
    def tasks_by_region(self) -> Mapping[str, int]:
        return _by_region(self.reports)

    def added(self, report: ActivationWindow) -> CountWindow:
        if report.counts.shape != self.shape:
            raise CountsError(f"counts of {report.edge_id} have shape {report.counts.shape}, its version has {self.shape}")
        reports = (*self.reports, report)
        return replace(self, reports=_halved(reports) if len(reports) > MAX_REPORTS else reports)

    def joined(self, newer: CountWindow) -> CountWindow:
        """This window followed by `newer`."""
        window = self
        for report in newer.reports:
            window = window.added(report)
        return window

    def emptied(self) -> CountWindow:
        return replace(self, reports=())

    def recent(self, num_tasks: int) -> CountWindow:
        """The newest reports that together hold at least `num_tasks` tasks; all of them when there are fewer."""
        held = 0
        for i in range(len(self.reports) - 1, -1, -1):
            held += self.reports[i].num_tasks
            if held >= num_tasks:
                return replace(self, reports=self.reports[i:])
        return self

    def halves(self) -> tuple[CountWindow, CountWindow]:
        """Older and newer half by tasks, to the nearest report; the older one is empty when there is only one report."""
        newer = self.recent((self.num_tasks + 1) // 2)
        if len(newer.reports) == len(self.reports) > 1:
            newer = replace(self, reports=self.reports[1:])
        return replace(self, reports=self.reports[: len(self.reports) - len(newer.reports)]), newer


def _halved(reports: tuple[ActivationWindow, ...]) -> tuple[ActivationWindow, ...]:
    pairs = zip(reports[::2], reports[1::2], strict=False)
    joined = tuple(_sum(older, newer) for older, newer in pairs)
    return joined + reports[2 * len(joined) :]


def _sum(older: ActivationWindow, newer: ActivationWindow) -> ActivationWindow:
    return replace(
        newer,
        counts=older.counts + newer.counts,
        num_tasks=older.num_tasks + newer.num_tasks,
        start_at_s=older.start_at_s,
        tasks_by_region=_by_region((older, newer)),
    )


def _by_region(reports: Sequence[ActivationWindow]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for report in reports:
        total.update(report.tasks_by_region)
    return dict(sorted(total.items()))
