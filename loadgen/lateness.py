"""How punctually a run was sent: the late-send histogram and its verdict. A run sent late says little about the system under load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BUCKETS_S = (0.001, 0.002, 0.005, 0.010, 0.020, 0.050, 0.100)  # upper ends; the last bucket is open
LATE_S = 0.010
LATE_SHARE_LIMIT = 0.01


@dataclass(frozen=True, slots=True)
class LateSends:
    """`counts[i]` sends were late by at most `buckets_s[i]`; one more count holds the rest."""

    buckets_s: tuple[float, ...]
    counts: tuple[int, ...]
    late_share: float  # of sends more than LATE_S after their intended instant
    worst_s: float

    @property
    def ok(self) -> bool:
        """Green when at most one send in a hundred was more than ten milliseconds late."""
        return self.late_share <= LATE_SHARE_LIMIT


def late_sends(late_s: Sequence[float]) -> LateSends:
    """The histogram of the lateness of every send, in seconds after the intended instant."""
    counts = [0] * (len(BUCKETS_S) + 1)
    for value in late_s:
        counts[next((i for i, upper in enumerate(BUCKETS_S) if value <= upper), len(BUCKETS_S))] += 1
    num_late = sum(1 for value in late_s if value > LATE_S)
    return LateSends(BUCKETS_S, tuple(counts), num_late / len(late_s) if late_s else 0.0, max(late_s, default=0.0))
