"""Policies on given candidates: the choice and its reason."""

from __future__ import annotations

import numpy as np
import pytest

from services.core.offload.policies import names, policy
from services.core.offload.values import Work
from tests.builders import make_candidate, make_candidates, make_task


def choose(made, candidates, seed=1):
    choice = made.choose(make_task(), candidates, np.random.default_rng(seed))
    made.chosen(tuple(candidates.edges[row].edge_id for row in choice.rows))
    return candidates.edges[choice.rows[0]].edge_id, choice.reason


def test_every_file_of_the_folder_is_a_policy_under_its_name():
    assert {"least_loaded", "onto", "random", "round_robin"} <= set(names())
    assert not any(name.startswith("_") for name in names())
    for name in names():
        assert policy(name.replace("_", "-"))


def test_an_unknown_policy_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'best': choose one of .*least_loaded, .*onto, .*random, round_robin"):
        policy("best")


def test_onto_takes_the_lowest_cost():
    candidates = make_candidates(make_candidate("a", cost=0.4), make_candidate("b", cost=-0.2), make_candidate("c", cost=0.1))
    assert choose(policy("onto"), candidates) == ("b", "lowest predicted cost")


def test_onto_breaks_ties_by_lowest_finish_then_lowest_id():
    a = make_candidate("a", cost=1.0, completion_time_s=3.0)
    b, c = (make_candidate(name, cost=1.0, completion_time_s=2.0) for name in "bc")
    assert choose(policy("onto"), make_candidates(a, b, c)) == ("b", "lowest predicted cost, tie")


def test_onto_with_random_ties_spreads_equal_candidates_only():
    candidates = make_candidates(*(make_candidate(name, cost=1.0) for name in "ab"), make_candidate("c", cost=2.0))
    onto = policy("onto", ties="random")
    assert {choose(onto, candidates, seed)[0] for seed in range(20)} == {"a", "b"}


def test_round_robin_takes_turns_and_passes_over_edges_that_left():
    made = policy("round_robin")
    all_three = make_candidates(*(make_candidate(name) for name in "abc"))
    assert [choose(made, all_three)[0] for _ in range(4)] == ["a", "b", "c", "a"]
    assert choose(made, make_candidates(make_candidate("a"), make_candidate("c"))) == ("c", "round robin")


def test_least_loaded_takes_the_fewest_tasks_outstanding():
    loaded = [make_candidate(name, outstanding=Work(num_tasks=n)) for name, n in zip("abc", (3, 1, 2), strict=True)]
    assert choose(policy("least_loaded"), make_candidates(*loaded)) == ("b", "fewest tasks outstanding")


def test_random_takes_each_candidate_about_as_often():
    made, rng = policy("random"), np.random.default_rng(5)
    candidates = make_candidates(*(make_candidate(name) for name in "abcd"))
    rows = [made.choose(make_task(), candidates, rng).rows[0] for _ in range(4000)]
    assert np.bincount(rows) == pytest.approx([1000] * 4, rel=0.1)
