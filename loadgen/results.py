"""What a live replay leaves behind: one record for each task, samples of the edges, updates, and the whole result.

Plain values, every instant in seconds since the start of the plan on the load generator's own monotonic clock. Nothing is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from services.core.offload.values import Link, StepTimes


class Outcome(StrEnum):
    """The three ends a task can have, as its user sees them; never mixed in one percentile."""

    COMPLETED = "completed"
    FAILED = "failed"  # ended by a status after the broker took it, or by the transport
    REJECTED = "rejected"  # refused with a documented status before any work was done


@dataclass(frozen=True, slots=True)
class Finished:
    """One task from its intended send to its end. Predictions are the broker's at decision time, observations come from its summary."""

    task_id: str  # of the plan; `served_id` is the broker's
    user_id: str
    region: str
    task_type: str
    item_id: str
    alpha: float
    intended_at_s: float
    sent_at_s: float
    end_at_s: float
    outcome: Outcome
    status: str = "OK"
    reason: str = ""
    message: str = ""
    first_token_at_s: float | None = None
    served_id: str = ""
    edge_id: str = ""
    version: str = ""
    attempts: int = 0
    restarts: int = 0
    prompt_bytes: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    tokens_sha: str = ""  # of the streamed token ids, so that two runs can be compared without keeping answers
    score: float | None = None
    predicted_quality: float = 0.0
    predicted_queue_wait_s: float = 0.0
    predicted_completion_time_s: float = 0.0
    queue_wait_s: float = 0.0
    inference_s: float = 0.0
    completion_time_s: float = 0.0  # the broker's own measurement
    decision_s: float = 0.0

    @property
    def latency_s(self) -> float:
        """From the intended send: a stalled load generator cannot hide a queue."""
        return self.end_at_s - self.intended_at_s

    @property
    def beside_computing_s(self) -> float:
        """What is neither wait nor inference: links and calls, both ways."""
        return self.latency_s - self.queue_wait_s - self.inference_s

    @property
    def latency_from_send_s(self) -> float:
        return self.end_at_s - self.sent_at_s

    @property
    def late_s(self) -> float:
        return self.sent_at_s - self.intended_at_s


@dataclass(frozen=True, slots=True)
class EdgeDescription:
    """One edge as the broker listed it before the first task: what stays as it is for a whole run."""

    edge_id: str
    memory_bytes: int
    max_batch: int
    max_queue: int
    links: Mapping[str, Link]  # by user region


@dataclass(frozen=True, slots=True)
class MergeRules:
    """How a stack that was started for the run merges: what its controller and its workers were given."""

    trigger: str
    options: Mapping[str, float | bool | str]
    min_gain: float
    cool_down_s: float
    report_tasks: int
    report_interval_s: float


@dataclass(frozen=True, slots=True)
class EdgeSample:
    """One edge as the broker listed it at one instant."""

    at_s: float
    edge_id: str
    version: str
    state: str
    outstanding_tasks: int
    predicted_queue_wait_s: float
    updates: int
    model_bytes: int
    memory_bytes: int
    mix: Mapping[str, float] = field(default_factory=dict)
    step_times: StepTimes | None = None  # as the worker had fitted them by then


@dataclass(frozen=True, slots=True)
class Swap:
    """What the worker measured while it swapped a version in."""

    from_version: str
    to_version: str
    fetch_s: float
    load_s: float
    stall_s: float
    downtime_s: float
    bytes_fetched: int
    bytes_full: int
    peak_model_bytes: int = 0
    in_flight_tasks: int = 0


@dataclass(frozen=True, slots=True)
class Update:
    """One edge took a new version (or failed to). `swap` is None where no event log was at hand and only the version change was seen."""

    at_s: float
    edge_id: str
    version: str
    requested_at_s: float
    ok: bool = True
    reason: str = ""
    activation_shift: float = 0.0
    residual: float = 0.0
    mix: Mapping[str, float] = field(default_factory=dict)
    build_s: float = 0.0
    swap: Swap | None = None


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """Everything that one run over one plan showed."""

    name: str
    target: str
    policy: str
    base_model: str
    quality_scale: float
    num_planned: int
    planned_s: float  # last intended send
    duration_s: float  # until the last task ended
    finished: tuple[Finished, ...]
    samples: tuple[EdgeSample, ...] = ()
    updates: tuple[Update, ...] = ()
    drifts_at_s: tuple[float, ...] = ()
    mixes: tuple[tuple[float, Mapping[str, float]], ...] = ()  # (start, shares) of each phase
    scores_sent: int = 0
    scores_refused: int = 0
    edges: tuple[EdgeDescription, ...] = ()
    merging: MergeRules | None = None  # None: of a stack that ran already, whose controller is not asked

    @property
    def completed(self) -> tuple[Finished, ...]:
        return tuple(record for record in self.finished if record.outcome is Outcome.COMPLETED)

    @property
    def task_types(self) -> tuple[str, ...]:
        return tuple(sorted({record.task_type for record in self.finished}))

    @property
    def edge_ids(self) -> tuple[str, ...]:
        listed = {sample.edge_id for sample in self.samples} | {record.edge_id for record in self.finished}
        return tuple(sorted(listed - {""}))
