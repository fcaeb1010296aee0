"""What a run of finished tasks cost: the paper's two weighted costs, process time, total quality, and the positive cost we lead with.

All over the same values; failed tasks are not among them and must be reported beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

QualityKind = Literal["realised", "expected"]
TABLE_QUALITY_WEIGHT = 0.05  # the constant that the paper's Tables IV and V turn out to use


@dataclass(frozen=True, slots=True)
class FinishedTask:
    """`expected_quality` is what was predicted when the task was sent, `realised_quality` the score of its answer."""

    task_id: str
    arrived_at_s: float
    completed_at_s: float
    alpha: float
    expected_quality: float
    realised_quality: float
    edge_id: str
    task_type: str

    @property
    def completion_time_s(self) -> float:
        return self.completed_at_s - self.arrived_at_s

    def quality(self, kind: QualityKind) -> float:
        return self.realised_quality if kind == "realised" else self.expected_quality


@dataclass(frozen=True, slots=True)
class TotalQuality:
    """Sum of q(r_i) over tasks (paper, Sec. VI, metric 3)."""

    expected: float
    realised: float


def positive_cost(finished: Sequence[FinishedTask], quality_scale: float, kind: QualityKind = "realised") -> float:
    """Mean over tasks of completion_time_s + alpha · quality_scale · (1 - quality). Never negative, so percentages of it mean something."""
    if not finished:
        return 0.0
    costs = (task.completion_time_s + task.alpha * quality_scale * (1.0 - task.quality(kind)) for task in finished)
    return sum(costs) / len(finished)


def weighted_cost(finished: Sequence[FinishedTask], quality_scale: float, kind: QualityKind = "realised") -> float:
    """Paper, eq. (1): c_max - Σ alpha_i q(r_i), from the first arrival; it may be negative."""
    if not finished:
        return 0.0
    last_s = max(task.completed_at_s for task in finished)
    first_s = min(task.arrived_at_s for task in finished)
    return last_s - first_s - sum(task.alpha * quality_scale * task.quality(kind) for task in finished)


def process_time_s(finished: Sequence[FinishedTask], downtimes_s: Sequence[float] = ()) -> float:
    """Paper, Sec. VI, metric 2: Σ (c_i - a_i), the downtime of model switches included (R21)."""
    return sum(task.completion_time_s for task in finished) + sum(downtimes_s)


def total_quality(finished: Sequence[FinishedTask]) -> TotalQuality:
    return TotalQuality(sum(task.expected_quality for task in finished), sum(task.realised_quality for task in finished))


def table_cost(
    finished: Sequence[FinishedTask],
    downtimes_s: Sequence[float] = (),
    w: float = TABLE_QUALITY_WEIGHT,
    kind: QualityKind = "realised",
) -> float:
    """The cost that Tables IV and V of the paper obey: PT - w · TQ with one constant weight, not eq. (1)."""
    return process_time_s(finished, downtimes_s) - w * sum(task.quality(kind) for task in finished)
