"""Whole task types first: who is kept, who is not, and that it never costs a seat."""

import numpy as np
import pytest

from services.core.merging.allocations import TaskUse, allocation
from services.core.merging.allocations.whole_tasks import needed
from services.core.merging.plan import make_plan
from services.core.merging.values import BaseProfiles, Budget, LayerStatistics

NUM_LAYERS, NUM_EXPERTS = 3, 8


def use_of(*experts: int, tail: int | None = None) -> np.ndarray:
    row = np.zeros(NUM_EXPERTS)
    row[list(experts)] = 1 / len(experts)
    if tail is not None:
        row[tail] = 0.001
    return np.tile(row / row.sum(), (NUM_LAYERS, 1))


def tasks(**shares: float) -> list[TaskUse]:
    uses = {"a": use_of(0, 1, 2), "b": use_of(3, 4, 5), "c": use_of(6)}
    return [TaskUse(name, share, uses[name]) for name, share in shares.items()]


def ranked(num_slots: int, **shares: float) -> np.ndarray:
    mixed = np.sum([task.share * task.frequencies for task in tasks(**shares)], axis=0)
    return allocation("whole-tasks").ranking(mixed, tasks(**shares), num_slots)


def test_the_most_frequent_task_type_that_fits_is_kept_whole():
    ranking = ranked(NUM_LAYERS * 4, a=0.5, b=0.45, c=0.05)
    assert (ranking[:, [0, 1, 2]] > 1).all()
    assert (ranking[:, [3, 4, 5]] < 1).all()
    assert (ranking[:, 6] > 1).all()  # c fits beside a, b does not


def test_where_nothing_fits_the_ranking_is_by_frequency():
    assert (ranked(NUM_LAYERS * 2, a=0.5, b=0.5) < 1).all()


def test_an_expert_that_sees_next_to_nothing_is_not_needed():
    assert needed(use_of(0, 1, tail=7))[0].tolist() == [True, True, False, False, False, False, False, False]


@pytest.mark.parametrize("shares", [{"a": 0.6, "b": 0.4}, {"a": 0.4, "b": 0.6}])
def test_a_plan_keeps_one_of_two_tasks_whole_where_frequency_would_halve_both(shares):
    uses = {"a": use_of(0, 1, 2), "b": use_of(3, 4, 5)}
    statistics = {name: tuple(LayerStatistics(30.0 * row, np.eye(NUM_EXPERTS)) for row in use) for name, use in uses.items()}
    profiles = BaseProfiles("base", ("a", "b"), statistics)
    budget = Budget(NUM_LAYERS * 4, 0, (1,) * NUM_LAYERS)
    plan = make_plan(profiles, shares, budget, allocation="whole-tasks", method="dominant")
    favourite = {0, 1, 2} if shares["a"] > shares["b"] else {3, 4, 5}
    assert plan.experts_kept == NUM_LAYERS * 4
    for layer in plan.layers:
        assert favourite <= {group[0] for group in layer.groups}
