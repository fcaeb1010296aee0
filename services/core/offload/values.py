"""What an offload decision is made of: tasks, edges as seen at one instant, candidates, decisions.

Plain values. How a candidate's estimates come about is the estimator's business, which candidate is chosen the policy's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def value(made: type[T]) -> type[T]:
    """Frozen to mypy, a plain dataclass to Python, where a frozen one takes four times as long to make. For what each task makes."""
    return dataclass(slots=True, unsafe_hash=True)(made)


@value
class Task:
    """One user's inference job as the broker sees it on arrival."""

    task_id: str
    user_id: str
    region: str
    task_type: str | None  # None: the user did not say; `posterior` stands in
    posterior: Mapping[str, float]  # probability of each task type; a single 1.0 when `task_type` is known
    alpha: float  # in (0, 1]: how much quality is worth to this user
    prompt_bytes: int
    prompt_tokens: int
    max_tokens: int
    arrived_at_s: float
    deadline_at_s: float | None = None

    @property
    def likely_type(self) -> str:
        """The task type, or the most probable one where the user did not say; empty when nothing is known."""
        return self.task_type or max(sorted(self.posterior), key=self.posterior.__getitem__, default="")


@dataclass(frozen=True, slots=True)
class Link:
    """The way from one user region to one edge server. A rate of zero means that it was not set: as fast as can be."""

    latency_s: float
    uplink_bytes_per_s: float
    downlink_bytes_per_s: float

    @property
    def uplink_s_per_byte(self) -> float:
        return 1.0 / self.uplink_bytes_per_s if self.uplink_bytes_per_s > 0.0 else 0.0

    @property
    def downlink_s_per_byte(self) -> float:
        return 1.0 / self.downlink_bytes_per_s if self.downlink_bytes_per_s > 0.0 else 0.0


@value
class StepTimes:
    """The service model of an edge: a batch step costs a constant plus a share for each row, reading a prompt a share for each token.

    step_s(b) = step_base_s + step_row_s · b;  prefill_s(n) = prefill_base_s + prefill_token_s · n.
    """

    step_base_s: float
    step_row_s: float
    prefill_base_s: float
    prefill_token_s: float


@dataclass(frozen=True, slots=True)
class Work:
    """Work outstanding at an edge: tokens still to prefill and to decode (predicted) over `num_tasks` tasks."""

    num_tasks: int = 0
    prefill_tokens: float = 0.0
    decode_tokens: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.num_tasks + other.num_tasks,
            self.prefill_tokens + other.prefill_tokens,
            self.decode_tokens + other.decode_tokens,
        )


class EdgeState(Enum):
    READY = "ready"
    UPDATING = "updating"  # serves again after `unavailable_s`
    DRAINING = "draining"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class EdgeSnapshot:
    """One edge server at one instant, as its registry entry and the other brokers' outstanding work tell it."""

    edge_id: str
    version: str  # model version it serves
    state: EdgeState
    links: Mapping[str, Link]  # by user region
    quality: Mapping[str, float]  # expected score in [0, 1] of `version` by task type, from its manifest
    step_times: StepTimes  # as calibrated by the worker and published; corrected by what this broker observes
    max_batch: int
    max_queue: int
    others: Work = Work()  # outstanding work of the other brokers
    unavailable_s: float = 0.0  # remaining downtime of an update
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Candidate:
    """A feasible edge with its estimates for one task (design: "How a task flows", 2)."""

    edge_id: str
    version: str
    uplink_s: float
    queue_wait_s: float
    inference_s: float
    downlink_s: float
    output_tokens: float
    quality: float
    completion_time_s: float  # uplink + queue wait + inference + downlink
    cost: float  # completion_time_s - alpha · quality_scale · quality
    outstanding: Work = Work()


@dataclass(frozen=True, slots=True)
class Exclusion:
    """An edge that was no candidate, and why."""

    edge_id: str
    reason: str  # "draining" | "unreachable" | "queue_full" | "no_link" | "tried" | "late"


class Candidates(Protocol):
    """Of one decision, by ascending edge id."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Candidate]: ...

    def __getitem__(self, index: int, /) -> Candidate: ...

    def named(self, edge_id: str) -> Candidate:
        """Raises `KeyError` where that edge is none."""
        ...


@value
class Decision:
    """Where a task goes. `chosen` is a tuple of edges, of length one for every policy of the first version."""

    task_id: str
    chosen: tuple[str, ...]
    policy: str
    reason: str  # e.g. "lowest predicted cost", "round robin"
    decided_at_s: float
    candidates: Candidates  # made only when looked at (`candidates.CandidateTable`)
    excluded: tuple[Exclusion, ...] = ()

    def candidate(self, edge_id: str) -> Candidate:
        return self.candidates.named(edge_id)


@value
class Observed:
    """What a finished task turned out to be: the measurements that the predictors learn from."""

    queue_wait_s: float
    inference_s: float
    prompt_tokens: int
    output_tokens: int
    version: str
    task_type: str


class NoCandidateError(Exception):
    """No edge can take the task; `reasons` say why for each edge. `late` when only the deadline stood in the way."""

    def __init__(self, excluded: tuple[Exclusion, ...]) -> None:
        super().__init__("no edge can take the task: " + (", ".join(f"{e.edge_id}: {e.reason}" for e in excluded) or "no edge is known"))
        self.excluded = excluded

    @property
    def reason(self) -> str:
        """ "late" | "queue_full" | "unavailable": the most informative common cause, for the status table."""
        reasons = {e.reason for e in self.excluded} - {"draining", "unreachable", "tried", "no_link"}
        if "late" in reasons:
            return "late"
        return "queue_full" if "queue_full" in reasons else "unavailable"
