"""The published baselines: that each does what its paper says, in both forms."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from services.core.baselines import PUBLISHED
from services.core.merging import triggers
from services.core.offload.policies import Outcome, options, policy
from services.core.offload.policies.heft import by_rank
from services.core.offload.policies.moe_load import placement
from services.core.offload.values import Link, Work
from tests.builders import make_candidate, make_candidates, make_step_times, make_task

RNG = np.random.default_rng(0)


def send(made, candidates, task=None):
    task = task or make_task()
    choice = made.choose(task, candidates, RNG)
    made.chosen(tuple(candidates.edges[row].edge_id for row in choice.rows))
    if hasattr(made, "sent"):
        made.sent(task, candidates, choice.rows)
    return candidates.edges[choice.rows[0]].edge_id, choice.reason


def with_edges(candidates, **changes):
    """The same estimates at edges that differ: a value an edge for each field."""
    for field, values in changes.items():
        candidates.edges = [replace(edge, **{field: value}) for edge, value in zip(candidates.edges, values, strict=True)]
    return candidates


def with_tasks(*counts, speeds=None, versions=None):
    candidates = make_candidates(*(make_candidate(f"e{n}", outstanding=Work(num_tasks=count)) for n, count in enumerate(counts)))
    steps = [make_step_times(step_base_s=0.1 / speed) for speed in speeds or [1.0] * len(counts)]
    return with_edges(candidates, step_times=steps, version=versions or ["v1"] * len(counts))


def test_every_baseline_pairs_a_registered_policy_with_a_registered_trigger_in_both_forms():
    assert [b.name for b in PUBLISHED] == ["MAS", "LCS", "HERT", "Qual-Greedy", "QoS-Quant", "MoE-Load", "Multi-MoE", "Tanbr"]
    for pairing in (pairing for baseline in PUBLISHED for pairing in (baseline.paper, baseline.strong)):
        policy(pairing.policy, **pairing.policy_options)
        triggers.trigger(pairing.trigger, **pairing.trigger_options)


@pytest.mark.parametrize("policy_name", sorted({b.paper.policy for b in PUBLISHED}))
@pytest.mark.parametrize("trigger_name", triggers.names())
def test_every_baseline_policy_goes_with_every_trigger(policy_name, trigger_name):
    """They share nothing but what the edges serve: neither is constructed with, or told of, the other."""
    assert not set(options(policy_name)) & {"trigger", "mode"}
    assert triggers.trigger(trigger_name).name == trigger_name


# HEFT, Qual-Greedy


def test_heft_takes_the_earliest_predicted_finish_and_its_ranks_put_the_longest_task_first():
    candidates = make_candidates(make_candidate("a", completion_time_s=3.0, quality=1.0), make_candidate("b", completion_time_s=2.0))
    assert send(policy("heft"), candidates) == ("b", "earliest predicted finish")
    tables = [make_candidates(make_candidate(inference_s=seconds)) for seconds in (1.0, 3.0, 2.0, 3.0)]
    assert by_rank(tables) == (1, 3, 2, 0)


def test_qual_greedy_breaks_ties_by_queue_in_the_paper_and_by_finish_in_the_strong_form():
    near = make_candidate("near", queue_wait_s=2.0, completion_time_s=3.0)
    fast_queue = make_candidate("queue", queue_wait_s=1.0, completion_time_s=9.0)
    poor = make_candidate("poor", quality=0.1)
    assert send(policy("qual_greedy", form="paper"), make_candidates(near, fast_queue, poor))[0] == "queue"
    assert send(policy("qual_greedy"), make_candidates(near, fast_queue, poor))[0] == "near"


# LCS


def test_lcs_weighs_connections_by_speed():
    assert send(policy("lcs", form="paper"), with_tasks(2, 3, speeds=[1.0, 2.0])) == ("e1", "least connection for its weight")
    assert send(policy("lcs", form="paper"), with_tasks(0, 0, speeds=[1.0, 2.0]))[0] == "e1"  # a tie goes to the larger weight


def test_lcs_passes_a_flooded_server_over_for_c_minus_one_dispatches():
    made = policy("lcs", form="paper", consecutive=3)
    chosen = [send(made, with_tasks(9, 9, 0))[0] for _ in range(7)]
    assert chosen == ["e2"] * 4 + ["e0"] * 2 + ["e2"]
    assert send(policy("lcs", form="paper"), with_tasks(9, 9, 0))[1] == "least connection for its weight"


def test_the_paper_floods_any_server_once_and_the_strong_form_guards_new_ones_only():
    fast = with_tasks(0, 1, speeds=[1.0, 1.0])
    paper, strong = policy("lcs", form="paper", consecutive=2), policy("lcs", consecutive=2)
    for made in (paper, strong):
        send(made, with_tasks(5, 0))  # e0 was passed over: it is no newcomer any more
    assert [send(paper, fast)[0] for _ in range(4)] == ["e0", "e0", "e0", "e1"]
    assert [send(strong, fast)[0] for _ in range(6)] == ["e0"] * 6


def test_a_server_back_from_a_model_update_is_a_newcomer_to_the_strong_form():
    made = policy("lcs", consecutive=2)
    send(made, with_tasks(5, 0))
    updated = with_tasks(0, 5, versions=["v2", "v1"])
    assert [send(made, updated)[0] for _ in range(5)] == ["e0", "e0", "e0", "e1", "e0"]


def test_lcs_without_a_guard_is_weighted_least_connection():
    made, rng = policy("lcs", form="paper", consecutive=0), np.random.default_rng(3)
    for _ in range(300):
        counts, speeds = rng.integers(0, 6, size=5), rng.choice([0.5, 1.0, 2.0], size=5)
        chosen = send(made, with_tasks(*(int(c) for c in counts), speeds=[float(s) for s in speeds]))[0]
        loads = [(round(count / speed, 9), -speed, n) for n, (count, speed) in enumerate(zip(counts, speeds, strict=True))]
        assert chosen == f"e{min(loads)[2]}"


# MAS


def play(made, users, rewards_s, num_tasks):
    """Users in turn; a task of user u at edge e takes rewards_s[u][e] and is done before the next."""
    num_edges = len(rewards_s[0])
    candidates = with_tasks(*[0] * num_edges)
    chosen = []
    for n in range(num_tasks):
        user = n % len(users)
        task = make_task(f"t{n}", user_id=users[user], alpha=1.0)
        edge_id, _ = send(made, candidates, task)
        made.learned(Outcome(task, edge_id, "v1", rewards_s[user][int(edge_id[1:])], 0.0))
        chosen.append((user, int(edge_id[1:])))
    return chosen


@pytest.mark.parametrize("form", ["paper", "strong"])
def test_mas_explores_without_collisions_then_plays_the_best_match(form):
    seconds = [[1.0, 5.0, 9.0], [2.0, 4.0, 9.0], [9.0, 9.0, 3.0]]
    chosen = play(policy("mas", form=form), ["a", "b", "c"], seconds, 300)
    late = [pair for pair in chosen[150:] if pair in ((0, 0), (1, 1), (2, 2))]
    assert len(late) / 150 > 0.6
    rounds = [chosen[i : i + 3] for i in range(3, 9, 3)]
    assert all(len({edge for _, edge in turn}) == 3 for turn in rounds)


def test_mas_exploits_longer_in_every_epoch():
    chosen = play(policy("mas"), ["a", "b"], [[1.0, 9.0], [9.0, 1.0]], 400)
    matched = [(user, edge) in ((0, 0), (1, 1)) for user, edge in chosen]
    shares = [np.mean(matched[i : i + 100]) for i in (0, 100, 300)]
    assert shares[2] >= shares[0]
    assert shares[2] > 0.85


def test_ucb1_tries_every_server_and_settles_on_the_best():
    chosen = play(policy("mas", rule="ucb1"), ["a"], [[8.0, 1.0, 9.0]], 300)
    assert {edge for _, edge in chosen[:3]} == {0, 1, 2}
    assert np.mean([edge == 1 for _, edge in chosen[100:]]) > 0.6


def test_mas_pays_for_quality_in_the_strong_form_only_and_forgets_servers_that_changed_their_version():
    for form, best in (("paper", "e0"), ("strong", "e1")):
        made: Any = policy("mas", form=form, rule="ucb1")
        candidates = with_tasks(0, 0)
        for n in range(200):
            task = make_task(f"t{n}", alpha=0.5)
            edge_id, _ = send(made, candidates, task)
            seconds, quality = (0.8, 0.0) if edge_id == "e0" else (1.0, 1.0)
            made.learned(Outcome(task, edge_id, "v1", seconds, quality))
        chosen = [send(made, candidates, make_task(alpha=0.5))[0] for _ in range(4)]
        assert max(set(chosen), key=chosen.count) == best
    updated = with_tasks(0, 0, versions=["v2", "v1"])
    assert send(made, updated) == ("e0", "tries a new server")


def test_late_outcomes_of_a_version_that_left_teach_nothing():
    told: Any = policy("mas", rule="ucb1")
    untold: Any = policy("mas", rule="ucb1")
    candidates = with_tasks(0, 0, versions=["v2", "v2"])
    for made in (told, untold):
        for _ in range(2):
            edge_id, _ = send(made, candidates)
            made.learned(Outcome(make_task(), edge_id, "v2", 1.0, 0.5))
    told.learned(Outcome(make_task(), "e0", "v1", 1.0, 1.0))
    assert [send(told, candidates)[0] for _ in range(9)] == [send(untold, candidates)[0] for _ in range(9)]


# single servers: home, QoS-Quant, MoE-Load, Multi-MoE


def test_home_is_the_nearest_server_and_equally_near_ones_share_users():
    links = [{"west": Link(s, 0.0, 0.0)} for s in (0.2, 0.1, 0.1)]
    candidates = with_edges(with_tasks(0, 0, 0), links=links)
    chosen = [send(policy("home"), candidates, make_task(user_id=f"u{n}", region="west"))[0] for n in range(400)]
    assert set(chosen) == {"e1", "e2"}
    assert chosen.count("e1") == pytest.approx(200, abs=40)
    left = with_edges(with_tasks(0, 0), links=links[:2])
    moved = [send(policy("home"), left, make_task(user_id=f"u{n}", region="west"))[0] for n in range(400)]
    assert all(now == "e1" for now, then in zip(moved, chosen, strict=True) if then == "e1")


@pytest.mark.parametrize("name", ["qos_quant", "moe_load", "multi_moe"])
def test_systems_of_one_server_bind_users_in_the_papers_form_and_join_the_shortest_queue_in_the_strong_one(name):
    candidates = make_candidates(*(make_candidate(f"e{n}", queue_wait_s=float(5 - n)) for n in range(5)))
    paper = [send(policy(name, form="paper"), candidates, make_task(user_id=f"u{n}"))[0] for n in range(60)]
    assert len(set(paper)) == 5
    assert send(policy(name), candidates)[0] == "e4"


def test_multi_moe_waits_a_little_longer_to_save_a_swap():
    made = policy("multi_moe", swap_s=0.5)
    waits = {"e0": 0.0, "e1": 0.3}
    candidates = make_candidates(*(make_candidate(edge_id, queue_wait_s=wait_s) for edge_id, wait_s in waits.items()))
    assert send(made, candidates, make_task(task_type="ask"))[0] == "e0"
    assert send(made, candidates, make_task(task_type="sum")) == ("e1", "shortest predicted queue wait, no swap")
    assert send(made, candidates, make_task(task_type="ask"))[0] == "e0"


def test_moe_load_places_heavy_types_on_more_servers_and_takes_turns_there():
    made = policy("moe_load", form="greedy", interval_s=10.0)
    candidates = with_tasks(0, 0, 0, 0)
    for n in range(40):
        task_type = "rare" if n % 4 == 0 else "often"
        chosen = send(made, candidates, make_task(f"t{n}", task_type=task_type, arrived_at_s=0.3 * n))
    assert chosen[1] == "turn of a server of its task type"
    often = [send(made, candidates, make_task(task_type="often", arrived_at_s=12.0))[0] for _ in range(6)]
    rare = {send(made, candidates, make_task(task_type="rare", arrived_at_s=12.0))[0] for _ in range(6)}
    assert len(set(often)) == 3
    assert often[:3] == often[3:]
    assert len(rare) == 1
    assert not rare & set(often)


def test_anti_correlation_parts_types_whose_load_comes_together():
    wave = np.array([4.0, 0.0] * 8)
    loads = {"day-1": wave, "day-2": wave * 0.9, "night-1": wave[::-1] * 0.8, "night-2": wave[::-1] * 0.7}
    speeds = {"e0": 1.0, "e1": 1.0}
    together = placement(loads, speeds, 1.0)
    assert together["day-1"] != together["day-2"]
    assert together["night-1"] != together["night-2"]
    assert {t: len(servers) for t, servers in placement(loads, speeds, 0.0).items()} == dict.fromkeys(loads, 1)


# simple peers


def test_the_better_of_two_drawn_is_never_the_worst_of_all():
    candidates = make_candidates(
        *(make_candidate(f"e{n}", completion_time_s=float(n), outstanding=Work(num_tasks=3 - n)) for n in range(4))
    )
    assert {send(policy("power_of_two"), candidates)[0] for _ in range(200)} == {"e0", "e1", "e2"}
    assert {send(policy("power_of_two", form="paper"), candidates)[0] for _ in range(200)} == {"e1", "e2", "e3"}


def test_the_shortest_queue_is_counted_in_tasks_by_the_paper_and_in_seconds_by_the_strong_form():
    few_long = make_candidate("few", queue_wait_s=9.0, outstanding=Work(num_tasks=1))
    many_short = make_candidate("many", queue_wait_s=1.0, outstanding=Work(num_tasks=5))
    candidates = make_candidates(few_long, many_short)
    assert send(policy("join_shortest_queue", form="paper"), candidates)[0] == "few"
    assert send(policy("join_shortest_queue"), candidates)[0] == "many"
    equal = make_candidates(make_candidate("a"), make_candidate("b"))
    assert {send(policy("join_shortest_queue"), equal)[0] for _ in range(40)} == {"a", "b"}


def test_choices_of_an_endless_wait_everywhere_are_still_choices():
    endless = make_candidates(*(make_candidate(name, queue_wait_s=math.inf, completion_time_s=math.inf) for name in "ab"))
    assert send(policy("heft"), endless)[0] == "a"
