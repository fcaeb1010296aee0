"""Builders of core values with sensible defaults; a test names only what it is about."""

from __future__ import annotations

from typing import Any

import numpy as np

from services.core.offload.candidates import CandidateColumns, CandidateTable
from services.core.offload.values import Candidate, EdgeSnapshot, EdgeState, Link, StepTimes, Task

NO_LINK_TIME = Link(latency_s=0.0, uplink_bytes_per_s=0.0, downlink_bytes_per_s=0.0)


def make_task(task_id="t1", *, task_type="alpha-task", **overrides) -> Task:
    values: dict[str, Any] = {
        "user_id": "u1",
        "region": "default",
        "posterior": {task_type: 1.0} if task_type else {},
        "alpha": 0.5,
        "prompt_bytes": 40,
        "prompt_tokens": 10,
        "max_tokens": 32,
        "arrived_at_s": 0.0,
    }
    return Task(task_id=task_id, task_type=task_type, **(values | overrides))


def make_step_times(**overrides) -> StepTimes:
    """A token takes 0.1 s at any batch size, reading a prompt nothing."""
    return StepTimes(**({"step_base_s": 0.1, "step_row_s": 0.0, "prefill_base_s": 0.0, "prefill_token_s": 0.0} | overrides))


def make_edge(edge_id="e1", **overrides) -> EdgeSnapshot:
    values: dict[str, Any] = {
        "version": "v1",
        "state": EdgeState.READY,
        "links": {"default": NO_LINK_TIME},
        "quality": {"alpha-task": 0.8},
        "step_times": make_step_times(),
        "max_batch": 1,
        "max_queue": 64,
    }
    return EdgeSnapshot(edge_id=edge_id, **(values | overrides))


def make_candidate(edge_id="e1", **overrides) -> Candidate:
    values: dict[str, Any] = {
        "version": "v1",
        "uplink_s": 0.0,
        "queue_wait_s": 0.0,
        "inference_s": 1.0,
        "downlink_s": 0.0,
        "output_tokens": 10.0,
        "quality": 0.8,
        "completion_time_s": 1.0,
        "cost": 1.0,
    }
    return Candidate(edge_id=edge_id, **(values | overrides))


def make_candidates(*candidates: Candidate) -> CandidateTable:
    """What a policy chooses from."""
    edges = [make_edge(c.edge_id, version=c.version) for c in candidates]
    names = ("uplink_s", "queue_wait_s", "inference_s", "downlink_s", "quality", "completion_time_s", "cost")
    columns = {name: np.array([getattr(c, name) for c in candidates]) for name in names}
    outstanding = np.array([float(c.outstanding.num_tasks) for c in candidates])
    return CandidateTable(edges, CandidateColumns(outstanding=outstanding, **columns), candidates[0].output_tokens if candidates else 0.0)
