"""How a replay behaves: deadlines, what users tell the broker, how often edges are sampled. Checked on construction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from services.core.workload.mixes import DriftingMix, RegionalMix


@dataclass(frozen=True, slots=True)
class ReplayOptions:
    """`retries` is 0 by default: a failed task stays failed, so that faults show. A retry is a new send under a new idempotency key."""

    name: str = "replay"
    deadline_s: float = 60.0
    max_tokens: int = 0  # 0: the server's default
    send_task_type: bool = True
    send_scores: bool = True
    retries: int = 0
    sample_every_s: float = 1.0
    ready_within_s: float = 60.0
    lead_s: float = 0.25  # from the last preparation to the start of the plan
    records_path: Path | None = None  # JSON lines, one a task
    mix: DriftingMix | RegionalMix | None = None  # what the plan was drawn from: shown live, and the drifts of the report

    def __post_init__(self) -> None:
        for name in ("deadline_s", "sample_every_s", "ready_within_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0 seconds, got {getattr(self, name)}")
        if self.retries < 0:
            raise ValueError(f"retries must be 0 or more, got {self.retries}")
