"""What makes comparisons of policies fair: rules that must coincide do, noise is the same for all, an oracle is told the truth."""

from __future__ import annotations

import numpy as np
import pytest

from services.core.offload.engine import offload_engine
from services.core.offload.given import KeyedNoise, Oracle
from services.core.offload.matching import by_auction, by_optimum, smallest_gap, total_value
from services.core.offload.values import Link, Observed
from tests.builders import make_edge, make_step_times, make_task

TASK_TYPES = ("ask", "pick", "sum")


def make_edges(rng, num_edges=6, *, same_quality=False):
    return tuple(
        make_edge(
            f"edge-{n}",
            version=f"v{n}",
            quality={t: 0.5 if same_quality else float(rng.random()) for t in TASK_TYPES},
            step_times=make_step_times(step_base_s=0.02 * float(rng.random()) + 0.01, step_row_s=0.003),
            links={"default": Link(float(rng.random()) / 50, 1e5, 1e5)},
            max_batch=int(rng.integers(1, 5)),
        )
        for n in range(num_edges)
    )


def assignment(policy_name, *, quality_scale, seed=2, num_tasks=400, same_quality=False, policy_options=None, **options):
    rng = np.random.default_rng(seed)
    edges = make_edges(rng, same_quality=same_quality)
    engine = offload_engine(
        policy_name, quality_scale=quality_scale, rng=np.random.default_rng(0), policy_options=policy_options, **options
    )
    chosen, under_way = [], []
    for n in range(num_tasks):
        now_s = 0.03 * n
        kind = TASK_TYPES[int(rng.integers(3))]
        task = make_task(f"t{n}", task_type=kind, alpha=1.0 - float(rng.random()), prompt_bytes=int(rng.integers(10, 4000)))
        seconds = 0.1 + float(rng.random())
        edge_id = engine.decide(task, edges, now_s).chosen[0]
        chosen.append(edge_id)
        under_way.append((now_s + seconds, task.task_id, kind, edge_id))
        for due in sorted(entry for entry in under_way if entry[0] <= now_s):
            under_way.remove(due)
            engine.finished(due[1], Observed(0.0, 0.2, 10, 8, f"v{due[3][5:]}", due[2]), now_s)
    return chosen


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("form", ["paper", "strong"])
def test_heft_is_onto_for_users_who_care_nothing_for_quality_task_by_task(seed, form):
    heft = assignment("heft", quality_scale=1.0, seed=seed, policy_options={"form": form})
    assert heft == assignment("onto", quality_scale=0.0, seed=seed)
    assert len(set(heft)) > 2


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("same_quality", [False, True], ids=["qualities differ", "all tie"])
def test_qual_greedy_is_onto_for_users_who_care_for_quality_alone_task_by_task(seed, same_quality):
    greedy = assignment("qual_greedy", quality_scale=1.0, seed=seed, same_quality=same_quality)
    scale = 0.0 if same_quality else 1e9
    assert greedy == assignment("onto", quality_scale=scale, seed=seed, same_quality=same_quality)


def test_lcs_that_never_floods_is_weighted_least_connection_task_by_task():
    plain = assignment("lcs", quality_scale=1.0, policy_options={"form": "paper", "consecutive": 0})
    assert plain == assignment("lcs", quality_scale=1.0, policy_options={"form": "paper", "consecutive": 10**9})


@pytest.mark.parametrize("seed", range(40))
def test_the_auction_of_mas_finds_the_match_of_the_hungarian_method(seed):
    rng = np.random.default_rng(seed)
    num_players, num_servers = int(rng.integers(1, 25)), int(rng.integers(1, 11))
    slots = [int(n) for n in rng.integers(1, 4, size=num_servers)]
    while sum(slots) < num_players:
        slots[int(rng.integers(num_servers))] += 1
    values = rng.random((num_players, num_servers)) if seed % 2 else rng.integers(0, 5, size=(num_players, num_servers)) / 5.0
    epsilon = smallest_gap(values) / (2 * num_players)
    auctioned, best = by_auction(values, slots, epsilon), by_optimum(values, slots)
    assert (np.bincount(auctioned, minlength=num_servers) <= slots).all()
    assert total_value(values, auctioned) >= total_value(values, best) - num_players * epsilon - 1e-9


def test_a_match_without_a_slot_for_everybody_is_refused():
    with pytest.raises(ValueError, match="each player needs one"):
        by_auction(np.ones((3, 1)), [2], 0.1)


def test_noise_is_keyed_by_task_and_edge_and_not_by_the_order_of_calls():
    rng = np.random.default_rng(1)
    edges = make_edges(rng)
    noise = KeyedNoise(5, inference_sd=0.3, quality_sd=0.1)
    ones, halves = np.ones(len(edges)), np.full(len(edges), 0.5)
    first, second = make_task("t1"), make_task("t2")
    before = noise.inference_s(first, edges, ones), noise.quality(second, edges, halves)
    swapped = noise.quality(second, edges[::-1], halves)[::-1], noise.inference_s(first, edges[::-1], ones)[::-1]
    assert before[0] == pytest.approx(swapped[1])
    assert before[1] == pytest.approx(swapped[0])
    assert len({float(value) for value in before[0]}) == len(edges)
    assert not np.allclose(before[0], KeyedNoise(6, inference_sd=0.3).inference_s(first, edges, ones))


def test_noise_is_as_wide_as_it_says_and_without_bias():
    edges = (make_edge("e"),)
    noise = KeyedNoise(5, inference_sd=0.3, quality_sd=0.05)
    tasks = [make_task(f"t{n}") for n in range(4000)]
    times = np.array([noise.inference_s(task, edges, np.ones(1))[0] for task in tasks])
    qualities = np.array([noise.quality(task, edges, np.full(1, 0.5))[0] for task in tasks])
    assert times.mean() == pytest.approx(1.0, abs=0.02)
    assert np.log(times).std() == pytest.approx(0.3, rel=0.05)
    assert qualities.mean() == pytest.approx(0.5, abs=0.005)
    assert qualities.std() == pytest.approx(0.05, rel=0.05)


def test_two_policies_see_the_same_noisy_estimates_of_the_same_task():
    edges = make_edges(np.random.default_rng(1))
    seen = []
    for name in ("random", "onto"):
        given = KeyedNoise(5, inference_sd=0.3, quality_sd=0.1)
        engine = offload_engine(name, quality_scale=1.0, rng=np.random.default_rng(0), given=given)
        if name == "random":
            engine.explain(make_task("other", task_type="ask"), edges, 0.0)
        decision = engine.explain(make_task("t1", task_type="ask"), edges, 0.0)
        seen.append([(c.inference_s, c.quality, c.cost) for c in decision.candidates])
    assert seen[0] == seen[1]


def test_onto_with_an_oracle_is_told_true_lengths_and_qualities_and_waits_follow():
    edges = make_edge("a", version="va", quality={"ask": 0.9}), make_edge("b", version="vb", quality={"ask": 0.1})
    truth = {"va": 0.2, "vb": 0.8}
    oracle = Oracle({"long": 300.0, "short": 5.0}, lambda task, edge: truth[edge.version])
    engine = offload_engine("onto", quality_scale=10.0, rng=np.random.default_rng(0), output_tokens={"ask": 20.0}, given=oracle)
    first = engine.decide(make_task("long", task_type="ask", max_tokens=400), edges, 0.0)
    assert first.chosen == ("b",)
    assert first.candidate("b").quality == 0.8
    assert first.candidate("b").inference_s == pytest.approx(30.0)
    second = engine.decide(make_task("short", task_type="ask"), edges, 0.0)
    assert second.candidate("b").queue_wait_s == pytest.approx(30.0)
    assert second.candidate("a").inference_s == pytest.approx(0.5)


def test_with_given_values_nothing_is_learnt_of_step_times_that_are_right():
    edges = (make_edge("a"),)
    oracle = Oracle({f"t{n}": 10.0 for n in range(40)}, lambda task, edge: 0.5)
    engine = offload_engine("onto", quality_scale=1.0, rng=np.random.default_rng(0), given=oracle)
    for n in range(30):
        engine.decide(make_task(f"t{n}"), edges, float(n))
        engine.finished(f"t{n}", Observed(0.0, 9.0, 10, 10, "v1", "alpha-task"), n + 0.9)
    assert engine.explain(make_task("t30"), edges, 99.0).candidates[0].inference_s == pytest.approx(1.0)
