"""Arrivals, mixes and load plans: known rates, known shares, the same bytes for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from services.core.workload.arrivals import bursty, from_trace, poisson
from services.core.workload.load import User, plan_load
from services.core.workload.mixes import DriftingMix, MixPhase, mix_drawn


def rng(seed=11):
    return np.random.default_rng(seed)


def test_poisson_arrivals_have_the_rate_and_exponential_gaps():
    arrivals = poisson(20.0, 1000.0, rng())
    gaps = np.diff(arrivals)
    assert len(arrivals) == pytest.approx(20_000, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.03)
    assert arrivals.min() >= 0.0
    assert arrivals.max() < 1000.0


def test_bursty_arrivals_have_the_rate_and_clump():
    arrivals = bursty(20.0, 5000.0, rng())
    gaps = np.diff(arrivals)
    assert len(arrivals) == pytest.approx(100_000, rel=0.06)
    assert gaps.std() / gaps.mean() > 1.15
    assert (gaps >= 0.0).all()


def test_poisson_arrivals_at_one_server_wait_as_in_a_queue_of_type_m_m_1():
    arrivals, service = poisson(0.7, 60_000.0, rng(1)), rng(2)
    free_at_s = waited_s = 0.0
    for at_s in arrivals:
        waited_s += max(free_at_s - at_s, 0.0)
        free_at_s = max(free_at_s, at_s) + service.exponential(1.0)
    assert waited_s / len(arrivals) == pytest.approx(0.7 / (1 - 0.7), rel=0.1)


def test_a_trace_is_played_faster_from_where_it_is_told_to_start():
    trace = [0.0, 1.0, 4.0, 10.0, 20.0]
    assert from_trace(trace, speed=2.0, duration_s=5.0).tolist() == [0.0, 0.5, 2.0]
    assert from_trace(trace, speed=1.0, duration_s=10.0, start_s=4.0).tolist() == [0.0, 6.0]


@pytest.mark.parametrize("make", [lambda: poisson(0.0, 1.0, rng()), lambda: from_trace([1.0], 0.0, 1.0), lambda: bursty(1.0, -1.0, rng())])
def test_a_rate_duration_or_speed_of_zero_is_refused_by_name(make):
    with pytest.raises(ValueError, match="must be above 0"):
        make()


def test_a_mix_changes_in_steps_or_blends():
    phases = (MixPhase(0.0, {"a": 3.0, "b": 1.0}), MixPhase(10.0, {"b": 1.0}))
    assert DriftingMix(phases).at(9.9) == {"a": 0.75, "b": 0.25}
    assert DriftingMix(phases).at(10.0) == {"b": 1.0}
    assert DriftingMix(phases, blend_s=4.0).at(11.0) == pytest.approx({"a": 0.5625, "b": 0.4375})
    assert DriftingMix(phases, blend_s=4.0).at(14.0) == {"b": 1.0}
    assert DriftingMix(phases).changes() == (10.0,)
    assert DriftingMix(phases).task_types == ("a", "b")


@pytest.mark.parametrize(
    ("phases", "named"),
    [
        ((), "phases is empty"),
        ((MixPhase(0.0, {}),), "shares are"),
        ((MixPhase(1.0, {"a": 1.0}), MixPhase(1.0, {"a": 1.0})), "after the one before"),
    ],
)
def test_a_mix_that_makes_no_sense_is_refused(phases, named):
    with pytest.raises(ValueError, match=named):
        DriftingMix(phases)


def test_types_are_drawn_in_the_shares_of_the_mix():
    generator = rng()
    drawn = [mix_drawn(generator, {"b": 0.2, "a": 0.8}) for _ in range(5000)]
    assert drawn.count("a") / 5000 == pytest.approx(0.8, abs=0.02)


def make_plan(seed=1, duration_s=50.0):
    generator = rng(seed)
    mix = DriftingMix((MixPhase(0.0, {"a": 1.0}), MixPhase(25.0, {"b": 1.0})))
    users = [User(f"u{n}", "west" if n % 2 else "east") for n in range(10)]
    items = {"a": [f"a{n}" for n in range(30)], "b": [f"b{n}" for n in range(30)]}
    return plan_load(items, mix, poisson(20.0, duration_s, generator), users, generator)


def test_a_plan_follows_the_drift_and_uses_every_item_before_any_again():
    plan = make_plan()
    assert {t.task_type for t in plan if t.at_s < 25.0} == {"a"}
    assert {t.task_type for t in plan if t.at_s >= 25.0} == {"b"}
    first = [t.item_id for t in plan if t.task_type == "a"][:30]
    assert len(set(first)) == 30
    assert len({t.task_id for t in plan}) == len(plan)
    assert len({t.user_id for t in plan}) == 10


def test_alphas_are_uniform_and_never_zero():
    alphas = np.array([t.alpha for t in make_plan(duration_s=200.0)])
    assert (alphas > 0.0).all()
    assert (alphas <= 1.0).all()
    assert alphas.mean() == pytest.approx(0.5, abs=0.02)


def test_the_same_seed_plans_the_same_load():
    assert make_plan(5) == make_plan(5)
    assert make_plan(5) != make_plan(6)


def test_a_mix_of_types_without_items_is_refused():
    with pytest.raises(ValueError, match="no items"):
        plan_load({"a": ["1"]}, DriftingMix.constant({"a": 0.5, "zebra": 0.5}), [0.0], [User("u", "r")], rng())
