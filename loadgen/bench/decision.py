"""How long one offload decision takes by number of edges: wall time of the engine alone, with tasks waiting at every edge."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from services.core import defaults
from services.core.offload.engine import OffloadEngine, offload_engine
from services.core.offload.values import EdgeSnapshot, EdgeState, Link, Observed, StepTimes, Task

TASKS_PER_EDGE, MAX_BATCH, MAX_QUEUE = 4, 4, 64
STEP_TIMES = StepTimes(step_base_s=0.01, step_row_s=0.002, prefill_base_s=0.0, prefill_token_s=0.0)
INTERVAL_S = 1.0 / 300.0  # between tasks
DEADLINE_S = 30.0
OBSERVED = Observed(queue_wait_s=0.1, inference_s=0.3, prompt_tokens=10, output_tokens=12, version="v1", task_type="a")


@dataclass(frozen=True, slots=True)
class DecisionTime:
    median_s: float
    p99_s: float


def decision_time(num_edges: int, *, num_decisions: int, seed: int, policy: str = defaults.POLICY) -> DecisionTime:
    """To choose an edge, count the task there, and read the estimates of the one chosen, as the broker does for each task.

    Each task takes the place of the one that came first, so every edge has about `TASKS_PER_EDGE` at any time.
    """
    rng = np.random.default_rng(seed)
    engine = offload_engine(policy, quality_scale=1.0, rng=rng)
    edges = tuple(_edge(n, rng) for n in range(num_edges))
    waiting: deque[str] = deque()
    for n in range(num_edges * TASKS_PER_EDGE):
        waiting.append(_decided(engine, edges, f"before-{n}"))
    taken_s = np.empty(num_decisions)
    for n in range(num_decisions):
        now_s = n * INTERVAL_S
        task = _task(f"task-{n}", now_s)
        began_s = time.perf_counter()
        decision = engine.decide(task, edges, now_s)
        decision.candidate(decision.chosen[0])
        taken_s[n] = time.perf_counter() - began_s
        waiting.append(task.task_id)
        engine.finished(waiting.popleft(), OBSERVED, now_s)
    return DecisionTime(float(np.median(taken_s)), float(np.percentile(taken_s, 99)))


def _decided(engine: OffloadEngine, edges: tuple[EdgeSnapshot, ...], task_id: str) -> str:
    engine.decide(_task(task_id, 0.0), edges, 0.0)
    return task_id


def _edge(number: int, rng: np.random.Generator) -> EdgeSnapshot:
    return EdgeSnapshot(
        edge_id=f"edge-{number:04d}",
        version="v1",
        state=EdgeState.READY,
        links={"default": Link(0.0, 0.0, 0.0)},
        quality={"a": float(rng.random()), "b": float(rng.random())},
        step_times=STEP_TIMES,
        max_batch=MAX_BATCH,
        max_queue=MAX_QUEUE,
    )


def _task(task_id: str, now_s: float) -> Task:
    """Its type is not said, as with users who do not say: the posterior over types stands in. As most calls, it has a deadline."""
    return Task(
        task_id=task_id,
        user_id="user",
        region="default",
        task_type=None,
        posterior={"a": 0.7, "b": 0.3},
        alpha=0.5,
        prompt_bytes=40,
        prompt_tokens=10,
        max_tokens=32,
        arrived_at_s=now_s,
        deadline_at_s=now_s + DEADLINE_S,
    )
