"""The wait prediction: work outstanding rolled forward over batch slots."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from services.core.offload.engine import offload_engine
from services.core.offload.values import Observed, StepTimes, Work
from services.core.offload.waits import forecast
from tests.builders import make_edge, make_step_times, make_task


def make_engine(policy="onto", quality_scale=1.0, **options):
    return offload_engine(policy, quality_scale=quality_scale, rng=np.random.default_rng(7), **options)


def observed(**overrides):
    values: dict[str, Any] = {
        "queue_wait_s": 0.0,
        "inference_s": 1.0,
        "prompt_tokens": 10,
        "output_tokens": 10,
        "version": "v1",
        "task_type": "alpha-task",
    }
    return Observed(**(values | overrides))


class Remainder(NamedTuple):
    """What a task still needs."""

    prefill_s: float
    decode_tokens: float


def forecast_wait_s(tasks: list[Remainder], times: StepTimes, slots: int) -> float:
    running, waiting = tasks[:slots], tasks[slots:]
    return forecast(
        [task.decode_tokens for task in running],
        sum(task.prefill_s for task in running),
        [task.decode_tokens for task in waiting],
        sum(task.prefill_s for task in waiting),
        times.step_base_s + times.step_row_s * slots,
    ).wait_s


def simulated_wait_s(tasks: list[Remainder], times: StepTimes, slots: int) -> float:
    """The batch loop, step by step: admit at step boundaries, one token a row a step."""
    now_s, queue = 0.0, list(tasks)
    rows: list[float] = []
    while True:
        while queue and len(rows) < slots:
            task = queue.pop(0)
            now_s += task.prefill_s
            rows.append(task.decode_tokens)
        if len(rows) < slots:
            return now_s
        now_s += times.step_base_s + times.step_row_s * slots
        rows = [tokens - 1 for tokens in rows if tokens > 1]


def test_one_slot_gives_the_fifo_sum_of_predicted_inference_times():
    times = StepTimes(step_base_s=0.1, step_row_s=0.02, prefill_base_s=0.3, prefill_token_s=0.01)
    edge = make_edge(max_batch=1, step_times=times)
    engine = make_engine(output_tokens={"alpha-task": 8.0})
    for n in range(4):
        engine.decide(make_task(f"t{n}", prompt_tokens=20), (edge,), 0.0)
    one_task_s = (0.3 + 20 * 0.01) + 8 * 0.12
    assert engine.wait_s(edge, 0.0) == pytest.approx(4 * one_task_s)


@pytest.mark.parametrize("slots", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("num_waiting", [0, 1, 3, 7, 20])
def test_a_batch_is_rolled_forward_as_the_batch_loop_runs_it(slots, num_waiting):
    rng = np.random.default_rng(slots * 100 + num_waiting)
    times = StepTimes(step_base_s=0.05, step_row_s=0.01, prefill_base_s=0.0, prefill_token_s=0.0)
    tasks = [Remainder(float(rng.random() * 0.2), float(rng.integers(1, 30))) for _ in range(slots + num_waiting)]
    assert forecast_wait_s(tasks, times, slots) == pytest.approx(simulated_wait_s(tasks, times, slots))


def test_a_free_slot_means_no_wait():
    edge = make_edge(max_batch=4)
    engine = make_engine()
    for n in range(3):
        engine.decide(make_task(f"t{n}"), (edge,), 0.0)
    assert engine.wait_s(edge, 0.0) == 0.0


def test_the_wait_melts_as_time_passes_and_never_below_what_is_queued():
    edge = make_edge(max_batch=1)
    engine = make_engine(output_tokens={"alpha-task": 10.0})
    for n in range(2):
        engine.decide(make_task(f"t{n}"), (edge,), 0.0)
    assert engine.wait_s(edge, 0.0) == pytest.approx(2.0)
    assert engine.wait_s(edge, 0.5) == pytest.approx(1.5)
    # Reading A11: the running task outlives its prediction by a token at least; the queued one is still whole.
    assert engine.wait_s(edge, 60.0) == pytest.approx(0.1 + 1.0)


def test_finished_tasks_leave_the_sum():
    edge = make_edge(max_batch=1)
    engine = make_engine(output_tokens={"alpha-task": 10.0})
    for n in range(2):
        engine.decide(make_task(f"t{n}"), (edge,), 0.0)
    engine.finished("t0", observed(), 1.0)
    assert engine.wait_s(edge, 1.0) == pytest.approx(1.0, abs=0.05)
    engine.withdrawn("t1", 1.0)
    assert engine.wait_s(edge, 1.0) == 0.0
    assert engine.outstanding(1.0) == {}


def test_tokens_that_come_late_lengthen_the_wait_and_tokens_on_time_do_not():
    edge = make_edge(max_batch=1)
    on_time, late = make_engine(output_tokens={"alpha-task": 20.0}), make_engine(output_tokens={"alpha-task": 20.0})
    for engine in (on_time, late):
        engine.decide(make_task("t0"), (edge,), 0.0)
        engine.started("t0", 0.0)
    for n in range(1, 11):
        on_time.progressed("t0", n, n * 0.1)
        late.progressed("t0", n // 2, n * 0.1)
    assert on_time.wait_s(edge, 1.0) == pytest.approx(1.0, abs=0.11)
    assert late.wait_s(edge, 1.0) == pytest.approx(1.5, abs=0.11)


def test_other_brokers_work_counts_and_nothing_is_counted_twice():
    engine = make_engine(output_tokens={"alpha-task": 10.0})
    edge = make_edge(max_batch=1, others=Work(num_tasks=3, prefill_tokens=0.0, decode_tokens=30.0))
    assert engine.wait_s(edge, 0.0) == pytest.approx(3.0)
    engine.decide(make_task("t0"), (edge,), 0.0)
    assert engine.wait_s(edge, 0.0) == pytest.approx(4.0)
    assert engine.outstanding(0.0)["e1"].num_tasks == 1


def test_remaining_downtime_of_an_update_is_part_of_the_wait():
    edges = (make_edge("e1", unavailable_s=5.0), make_edge("e2"))
    engine = make_engine(quality_scale=0.0)
    explained = engine.explain(make_task(), edges, 0.0)
    assert [c.queue_wait_s for c in explained.candidates] == [5.0, 0.0]
    assert engine.explain(make_task(), edges, 3.0).candidates[0].queue_wait_s == pytest.approx(2.0)


def test_an_explicit_start_is_taken_over_the_guessed_one():
    edge = make_edge(max_batch=1)
    engine = make_engine(output_tokens={"alpha-task": 10.0})
    engine.decide(make_task("t0"), (edge,), 0.0)
    engine.started("t0", 0.4)
    assert engine.wait_s(edge, 0.4) == pytest.approx(1.0)


def test_step_times_depend_on_the_rows_of_the_batch():
    times = make_step_times(step_base_s=0.1, step_row_s=0.1)
    edge = make_edge(max_batch=4, step_times=times)
    engine = make_engine(output_tokens={"alpha-task": 10.0})
    seen = []
    for n in range(5):
        seen.append(engine.decide(make_task(f"t{n}"), (edge,), 0.0).candidate("e1").inference_s)
    assert seen == pytest.approx([2.0, 3.0, 4.0, 5.0, 5.0])
