"""How long one offload decision takes; prints it. Run `python -m tests.bench.bench_decision`. Not a test: it asserts nothing."""

from __future__ import annotations

import time

import numpy as np

from services.core.offload.engine import offload_engine
from services.core.offload.values import Observed
from tests.builders import make_edge, make_step_times, make_task


def decision_s(num_edges: int, queue_tasks: int, policy: str = "onto", num_decisions: int = 2000) -> tuple[float, float]:
    """Median and 99th percentile of one decision; each takes a task that one which leaves makes room for."""
    rng = np.random.default_rng(1)
    engine = offload_engine(policy, quality_scale=1.0, rng=rng)
    times = make_step_times(step_base_s=0.01, step_row_s=0.002)
    edges = tuple(
        make_edge(f"edge-{i:03d}", max_batch=4, quality={"a": float(rng.random()), "b": float(rng.random())}, step_times=times)
        for i in range(num_edges)
    )
    waiting: list[str] = []
    for n in range(num_edges * queue_tasks):
        task = make_task(f"warm-{n}", posterior={"a": 0.7, "b": 0.3})
        engine.decide(task, edges, 0.0)
        waiting.append(task.task_id)
    taken_s = np.empty(num_decisions)
    for n in range(num_decisions):
        now_s = n / 300.0
        task = make_task(f"task-{n}", posterior={"a": 0.7, "b": 0.3})
        started = time.perf_counter()
        engine.decide(task, edges, now_s)
        taken_s[n] = time.perf_counter() - started
        waiting.append(task.task_id)
        if len(waiting) > num_edges * queue_tasks:
            engine.finished(waiting.pop(0), Observed(0.1, 0.3, 10, 12, "v1", "a"), now_s)
    return float(np.median(taken_s)), float(np.percentile(taken_s, 99))


def main() -> None:
    print(f"{'policy':<14}{'edges':>6}{'queue':>6}{'p50 us':>9}{'p99 us':>9}")
    for policy in ("onto", "least_loaded", "round_robin", "random"):
        for num_edges, queue_tasks in ((3, 4), (20, 4), (100, 4), (100, 8)):
            median_s, worst_s = decision_s(num_edges, queue_tasks, policy)
            print(f"{policy:<14}{num_edges:>6}{queue_tasks:>6}{median_s * 1e6:>9.1f}{worst_s * 1e6:>9.1f}")


if __name__ == "__main__":
    main()
