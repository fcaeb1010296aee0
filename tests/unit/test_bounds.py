"""The competitive ratios of the paper: the arithmetic by hand and by enumeration, where they hold, and counterexamples as numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.experiments import experiment
from loadgen.experiments._bounds_arrivals import Loaded, engine_beside_model
from loadgen.experiments._bounds_at_once import against_bound, against_optimum
from loadgen.experiments._bounds_drawn import PREDICTIONS, Drawn, instance
from loadgen.experiments._bounds_switches import Switched
from loadgen.experiments._bounds_switches import against_bound as with_switches_against_bound
from loadgen.experiments._feedback import Switch, place_with_feedback
from loadgen.experiments._makespan import (
    bracketed_optimum,
    competitive_ratio,
    late_long_task,
    least_makespan_s,
    least_quality_ratio,
    makespan_s,
    misleading_order,
    optimal_makespan_s,
    optimal_places,
    place_by_cost,
    place_by_load,
    proven_ratio,
    weighted_cost,
)
from loadgen.reproduce.context import Context
from loadgen.reproduce.store import Store

whole_times = st.lists(st.integers(1, 20), min_size=1, max_size=6).map(lambda times: np.array(times, dtype=float))


def ended(times, predicted, num_edges: int) -> float:
    return makespan_s(np.array(times, dtype=float), place_by_load(np.array(predicted, dtype=float), num_edges), num_edges)


def ended_with_feedback(arrived, times, predicted, num_edges: int, **options) -> np.ndarray:
    arrived, times, predicted = (np.array(told, dtype=float) for told in (arrived, times, predicted))
    return place_with_feedback(arrived, times, predicted, num_edges, **options)[1]


def least_by_enumeration(times: np.ndarray, worth: np.ndarray) -> float:
    """Every assignment, one by one."""
    every = itertools.product(range(worth.shape[1]), repeat=len(times))
    return min(weighted_cost(times, np.array(places), worth) for places in every)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(whole_times, st.integers(1, 3))
def test_branch_and_bound_finds_what_enumeration_finds_between_the_lower_bound_and_onto(times, num_edges):
    optimum = optimal_makespan_s(times, num_edges)
    assert optimum == pytest.approx(least_by_enumeration(times, np.zeros((len(times), num_edges))))
    assert optimum == pytest.approx(optimal_places(times, np.zeros((len(times), num_edges)))[0])
    assert least_makespan_s(times, num_edges) <= optimum + 1e-9 <= ended(times, times, num_edges) + 2e-9


@settings(max_examples=40, deadline=None, derandomize=True)
@given(whole_times, st.integers(1, 3), st.integers(0, 1000))
def test_the_least_cost_lies_in_its_bracket_and_below_what_onto_pays(times, num_edges, seed):
    worth = np.random.default_rng(seed).uniform(0.0, 5.0, (len(times), num_edges))
    least, places = optimal_places(times, worth)
    below, above = bracketed_optimum(times, worth)
    assert [weighted_cost(times, places, worth), least_by_enumeration(times, worth)] == pytest.approx([least, least])
    assert below <= least + 1e-6 <= above + 2e-6
    assert least <= weighted_cost(times, place_by_cost(times, worth), worth) + 1e-9


@settings(max_examples=40, deadline=None, derandomize=True)
@given(whole_times, st.integers(1, 3), st.integers(0, 1000))
def test_with_arrivals_the_optimum_lies_between_the_lower_bound_and_list_scheduling(times, num_edges, seed):
    arrived = np.sort(np.random.default_rng(seed).uniform(0.0, 30.0, len(times)))
    optimum, _ = optimal_places(times, np.zeros((len(times), num_edges)), arrived)
    assert least_makespan_s(times, num_edges, arrived) <= optimum + 1e-9
    assert optimum <= ended_with_feedback(arrived, times, times, num_edges).max() + 1e-9


def test_without_quality_the_cost_rule_is_the_load_rule_and_feedback_changes_nothing_that_comes_at_once():
    predicted = np.random.default_rng(5).integers(1, 20, 200).astype(float)
    places = place_by_load(predicted, 7)
    assert np.array_equal(place_by_cost(predicted, np.zeros((200, 7))), places)
    assert np.array_equal(place_with_feedback(np.zeros(200), predicted[::-1], predicted, 7)[0], places)


def test_finished_tasks_leave_and_a_switch_waits_for_the_running_task():
    # Predicted 9, the first task ends after 1: at 2 its edge is free and takes the second.
    assert ended_with_feedback([0, 0, 2], [1, 5, 3], [9, 5, 3], 2).tolist() == [1.0, 5.0, 5.0]
    # Edge 0 runs till 2, updates till 12, and then takes what waited; what comes later sees the update and goes to edge 1.
    switches = [Switch(0.5, 0, 10.0)]
    assert ended_with_feedback([0, 0, 0, 1], [2, 6, 1, 4], [2, 6, 1, 4], 2, switches=switches).tolist() == [2.0, 6.0, 13.0, 10.0]


@pytest.mark.parametrize("prediction", ["true", "independent", "constant"])
@pytest.mark.parametrize("two_point", [False, True])
@pytest.mark.parametrize("per_edge", [50, 100])
def test_theorem_2_holds_for_many_tasks_and_predictions_unrelated_to_the_times(prediction, two_point, per_edge):
    found = against_bound(Drawn(prediction, per_edge, two_point=two_point, runs=20, seed=11))
    assert found["bound"] == pytest.approx(40 / 21)
    assert found["max"] <= found["bound"]


@pytest.mark.parametrize("prediction", list(PREDICTIONS))
@pytest.mark.parametrize("two_point", [False, True])
def test_predictions_keep_to_the_range_of_the_times(prediction, two_point):
    times_s, predicted_s = instance(Drawn(prediction, 100, two_point=two_point), np.random.default_rng(2))
    for told in (times_s, predicted_s):
        assert told.min() >= 0.2 - 1e-12
        assert told.max() <= 4.0 + 1e-12
        assert told.mean() == pytest.approx(2.1, rel=0.05)


def test_theorem_2_is_broken_with_two_tasks_an_edge_when_long_tasks_look_short():
    found = against_bound(Drawn("inverted", 2, two_point=True, runs=60, seed=0))
    assert found["above"] == 1.0
    assert found["mean"] > 3.0


def test_theorem_2_is_broken_over_the_exact_optimum_too():
    assert against_optimum(Drawn("inverted", 4, 3, two_point=True, runs=60, seed=0))["above"] > 0.1


def test_three_tasks_two_of_them_mistaken_break_theorem_2():
    """mu = 3 and S = 2 (so beta >= 1): the bound is 1.5. Fewer tasks than edges and one more cannot break it."""
    times, predicted = (1.0, 3.0, 2.0), (3.0, 1.0, 1.0)  # in units of t_min; mean (mu + 1)/2
    assert np.mean(times) == (3 + 1) / 2
    assert least_quality_ratio(3.0, 2) == 1.0
    assert ended(times, predicted, 2) == 5.0
    assert optimal_makespan_s(np.array(times), 2) == 3.0
    assert competitive_ratio(3.0) == 1.5 < 5.0 / 3.0


def test_five_tasks_break_theorem_2_though_every_prediction_is_true():
    """mu = 3 and S = 3: the bound is 1.5. Times in sixths of t_min, from 6 to 18, mean 12."""
    times = (14.0, 14.0, 7.0, 7.0, 18.0)
    assert np.mean(times) == (18 + 6) / 2
    assert ended(times, times, 3) == 32.0
    assert optimal_makespan_s(np.array(times), 3) == 21.0
    assert competitive_ratio(3.0) < 32.0 / 21.0
    assert late_long_task(3.0, 3, 5) * 6 == pytest.approx(times)


@pytest.mark.parametrize("rounds", [1, 25])
def test_in_the_worst_order_the_ratio_stays_at_nineteen_however_many_tasks_there_are(rounds):
    times, predicted = misleading_order(20, 20, rounds)
    assert set(times) == set(predicted) == {1.0, 20.0}
    assert times.mean() == predicted.mean() == 10.5
    possible = 21.0 * rounds  # each edge `rounds` long tasks and as many short ones: the lower bound, so the optimum
    assert possible == least_makespan_s(times, 20)
    assert ended(times, predicted, 20) >= 400.0 * rounds
    with pytest.raises(ValueError, match="num_edges is 22"):
        misleading_order(20, 22, rounds)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 9), min_size=2, max_size=9), st.integers(2, 3))
def test_with_true_predictions_the_proven_ratio_holds(times, num_edges):
    """Over the lower bound, for a mean of (mu + 1)/2: pairs t, mu + 1 - t have it."""
    paired = np.array([*times, *(10 - t for t in times)], dtype=float)
    assert ended(paired, paired, num_edges) / least_makespan_s(paired, num_edges) <= proven_ratio(9.0, len(paired), num_edges) + 1e-9


def test_proposition_1_is_broken_where_theorem_2_is():
    """The three tasks, and one update of (N/S) t_min = 1.5 on the edge that ends last: 6.5 over 3, and the bound is 2."""
    assert competitive_ratio(3.0, 1) == 2.0 < (ended((1, 3, 2), (3, 1, 1), 2) + 3 / 2) / 3.0


@pytest.mark.parametrize("where", ["last", "any", "arrivals"])
@pytest.mark.parametrize("num_switches", [1, 20])
def test_proposition_1_holds_for_many_tasks_and_updates_of_assumption_3(where, num_switches):
    found = with_switches_against_bound(Switched(Drawn("independent", 50, runs=5, seed=3), num_switches, None, where))
    assert found["max"] <= found["bound"] == 2 * (20 + num_switches) / 21


def test_proposition_1_is_broken_by_updates_of_18_s_with_few_tasks():
    found = with_switches_against_bound(Switched(Drawn("true", 2, runs=10, seed=3), 1, 18.0, "any"))
    assert found["above"] == 1.0


def test_theorem_2_is_broken_by_quality_that_is_the_same_everywhere():
    """mu = 3, S = 2, beta = 1: times in units of t_min, quality 0.5 and alpha · quality_scale 0.2 for all, every prediction true."""
    times, worth = np.array([1.5, 1.5, 3.0]), np.full((3, 2), 0.5 * 0.2)
    cost = weighted_cost(times, place_by_cost(times, worth), worth)
    least, _ = optimal_places(times, worth)
    assert [cost, least] == pytest.approx([4.5 - 0.3, 3.0 - 0.3])
    assert cost / least > competitive_ratio(3.0)


def test_theorem_2_is_broken_by_a_task_that_takes_the_better_edge_and_hardly_cares():
    """mu = 3, S = 2, beta = 5: edges of quality 0.2 and 1; alpha · quality_scale 0.01 and 1.24, every prediction true."""
    times, worth = np.array([1.0, 3.0]), np.array([[0.01], [1.24]]) * np.array([0.2, 1.0])
    places = place_by_cost(times, worth)
    assert places.tolist() == [1, 0]
    least, best = optimal_places(times, worth)
    assert best.tolist() == [0, 1]
    assert weighted_cost(times, places, worth) / least == pytest.approx((3 - 0.01 - 0.248) / (3 - 0.002 - 1.24))
    assert competitive_ratio(3.0) < (3 - 0.01 - 0.248) / (3 - 0.002 - 1.24)


def test_assumption_2_asks_for_qualities_that_differ_only_where_edges_are_few():
    assert [least_quality_ratio(20.0, edges) for edges in (5, 10, 20, 21)] == [2.1, 1.05, 1.0, float("inf")]


def test_the_live_engine_that_knows_the_times_is_list_scheduling():
    found = engine_beside_model(Loaded(Drawn("true", 10, seed=4), 0.9))
    assert found["oracle_alike"] == 1.0
    assert found["oracle_engine_mean_s"] == pytest.approx(found["oracle_model_mean_s"], rel=1e-9)
    assert found["onto_engine_mean_s"] == pytest.approx(found["onto_model_mean_s"], rel=0.1)


def test_the_experiment_says_of_each_claim_what_its_runs_show(tmp_path):
    with Store(tmp_path / "runs.jsonl") as store:
        result = experiment("bounds").run(Context(store, lambda done, total, left_s: None, quick=True))
    verdicts = {claim.name: str(claim.verdict) for claim in result.claims}
    assert [verdicts[name] for name in ("theorem2-any-instance", "theorem2-any-order", "theorem2-cost")] == ["contradicted"] * 3
    assert [verdicts[name] for name in ("theorem2-many-tasks", "proposition1-assumed")] == ["reproduced"] * 2
    assert len({table.name for table in result.tables}) == len(result.tables)
