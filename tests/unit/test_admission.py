"""When waiting prompts are read: at once while nobody is halted or nobody else will come, else in company, and never very late."""

from __future__ import annotations

import math

import numpy as np
import pytest

from loadgen.simulator.edge import Edge, EdgeSite
from loadgen.simulator.model import SimulatedVersion
from services.core.admission import Admission
from services.core.offload.values import StepTimes

BASE_S = 0.1
TIMES = StepTimes(step_base_s=0.06, step_row_s=0.004, prefill_base_s=0.095, prefill_token_s=0.002)


def busy_admission():
    """Of an edge where a task comes every 0.05 s and lasts as long."""
    admission = Admission()
    for n in range(200):
        assert admission.admits(1, 0, BASE_S, 0.05 * n)
    return admission, 10.0


def test_an_edge_that_has_seen_nothing_and_one_that_halts_nobody_read_at_once():
    assert Admission().admits(1, 3, BASE_S, 0.0)
    admission, now_s = busy_admission()
    assert admission.admits(1, 0, BASE_S, now_s)
    assert admission.admits(1, 3, 0.0, now_s)


def test_a_busy_edge_waits_for_company_and_no_longer_than_reading_is_worth():
    admission, now_s = busy_admission()  # 20 begin a second, and 20 end of each that runs
    assert not admission.admits(1, 1, BASE_S, now_s)
    assert admission.copy().admits(5, 1, BASE_S, now_s + 0.01)  # more than 0.1 s x 40/s
    assert admission.due_in_s(BASE_S) == pytest.approx(0.1)
    assert not admission.admits(2, 1, BASE_S, now_s + 0.04)
    assert admission.due_in_s(BASE_S) == pytest.approx(0.03)
    assert admission.admits(2, 1, BASE_S, now_s + 0.08)


def test_waiting_counts_only_while_there_is_a_slot():
    admission, now_s = busy_admission()
    assert admission.admits(0, 4, BASE_S, now_s)
    assert admission.due_in_s(BASE_S) == math.inf
    assert not admission.admits(1, 2, BASE_S, now_s + 10.0)


def test_an_edge_where_hardly_anyone_comes_waits_for_nobody():
    admission = Admission()
    for n in range(100):
        assert admission.admits(1, 0, BASE_S, 10.0 * n)
        assert admission.admits(0, 1, BASE_S, 10.0 * n + 2.0)
        assert admission.admits(0, 0, BASE_S, 10.0 * n + 4.0)
    assert admission.admits(1, 1, BASE_S, 1000.0)


class AtOnce(Admission):
    """What there was before."""

    def admits(self, num_admissible, num_running, prefill_base_s, now_s):
        return True


@pytest.mark.parametrize(("rate", "most"), [(0.5, 1.005), (2.0, 1.005), (4.0, 0.95), (6.0, 0.8)])
def test_tasks_are_done_no_later_than_if_prompts_were_read_at_once_and_sooner_under_load(rate, most):
    assert mean_completion_s(Admission(), rate) <= most * mean_completion_s(AtOnce(), rate)


def mean_completion_s(admission, rate, num_tasks=6000):
    rng = np.random.default_rng(3)
    at_s, output_tokens = np.cumsum(rng.exponential(1.0 / rate, num_tasks)), rng.geometric(1.0 / 3.5, num_tasks)
    site = EdgeSite("only", {}, TIMES, 0.3, 4, num_tasks)
    edge = Edge(site, SimulatedVersion("v", {}, {}, {}, {}, 1, 0.0), [7] * num_tasks, output_tokens.tolist())
    edge._admission = admission
    total_s, n = 0.0, 0
    while n < num_tasks or edge.num_running:
        if n < num_tasks and at_s[n] < edge.turn_at_s:
            edge.arrived(n, float(at_s[n]))
            n += 1
        else:
            now_s = edge.turn_at_s
            ended, _ = edge.turn(now_s)
            total_s += sum(now_s - at_s[task] for task in ended)
    return total_s / num_tasks
