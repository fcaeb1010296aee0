"""The offload engine: which edge a task gets, why, and what is counted and learnt."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from services.core.offload.engine import offload_engine
from services.core.offload.values import EdgeState, Exclusion, Link, NoCandidateError, Observed
from tests.builders import NO_LINK_TIME, make_edge, make_step_times, make_task


def make_engine(policy="onto", quality_scale=1.0, seed=7, **options):
    options = {"output_tokens": {"alpha-task": 10.0}} | options
    return offload_engine(policy, quality_scale=quality_scale, rng=np.random.default_rng(seed), **options)


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


def test_estimates_are_link_wait_inference_and_the_cost_that_onto_minimises():
    link = Link(latency_s=0.1, uplink_bytes_per_s=400.0, downlink_bytes_per_s=40.0)
    edge = make_edge(
        links={"west": link}, quality={"alpha-task": 0.6}, step_times=make_step_times(prefill_base_s=0.5, prefill_token_s=0.01)
    )
    decision = make_engine(quality_scale=2.0).decide(make_task(region="west", alpha=0.5, prompt_bytes=40), (edge,), 3.0)
    candidate = decision.candidate("e1")
    assert candidate.uplink_s == pytest.approx(0.1 + 40 / 400)
    assert candidate.inference_s == pytest.approx(0.5 + 10 * 0.01 + 10 * 0.1)
    assert candidate.downlink_s == pytest.approx(0.1 + 10 * 4 / 40)
    assert candidate.completion_time_s == pytest.approx(0.2 + 1.6 + 1.1)
    assert candidate.cost == pytest.approx(candidate.completion_time_s - 0.5 * 2.0 * 0.6)
    assert (decision.chosen, decision.policy, decision.reason) == (("e1",), "onto", "lowest predicted cost")


def test_a_candidate_is_found_by_its_name_among_those_that_are_left():
    edges = tuple(make_edge(name, quality={"alpha-task": 0.1 * n}) for n, name in enumerate("abcde"))
    decision = make_engine().decide(make_task(), edges, 0.0, frozenset({"a", "c"}))
    assert [decision.candidate(name).quality for name in "bde"] == pytest.approx([0.1, 0.3, 0.4])
    assert [decision.candidate(name).edge_id for name in "bde"] == list("bde")
    for missing in ("a", "c", "cc", "z"):
        with pytest.raises(KeyError):
            decision.candidate(missing)


def test_a_user_who_values_quality_waits_for_it_and_one_who_does_not_goes_where_it_is_fast():
    good = make_edge("good", quality={"alpha-task": 0.9}, step_times=make_step_times(step_base_s=0.2))
    fast = make_edge("fast", quality={"alpha-task": 0.4})
    engine = make_engine(quality_scale=4.0)
    assert engine.explain(make_task(alpha=1.0), (good, fast), 0.0).chosen == ("good",)
    assert engine.explain(make_task(alpha=0.1), (good, fast), 0.0).chosen == ("fast",)


def test_quality_is_expected_over_the_posterior_of_task_types():
    edges = (make_edge("a", quality={"x": 1.0, "y": 0.0}), make_edge("b", quality={"x": 0.0, "y": 0.8}))
    decision = make_engine().explain(make_task(task_type=None, posterior={"x": 0.25, "y": 0.75}), edges, 0.0)
    assert [c.quality for c in decision.candidates] == pytest.approx([0.25, 0.6])


def test_picking_and_counting_are_one_step_so_a_burst_spreads():
    edges = tuple(make_edge(f"e{n}", max_batch=4) for n in range(4))
    engine = make_engine()
    chosen = [engine.decide(make_task(f"t{n}"), edges, 0.0).chosen[0] for n in range(200)]
    counts = [chosen.count(edge.edge_id) for edge in edges]
    assert max(counts) / np.mean(counts) <= 1.15


def test_explaining_counts_nothing_and_changes_no_later_decision():
    edges = tuple(make_edge(f"e{n}") for n in range(5))
    for policy in ("onto", "round_robin", "least_loaded", "random"):
        plain, asked = make_engine(policy), make_engine(policy)
        for n in range(12):
            task = make_task(f"t{n}")
            explained = asked.explain(task, edges, 0.0)
            assert asked.decide(task, edges, 0.0).chosen == explained.chosen == plain.decide(task, edges, 0.0).chosen
        assert asked.outstanding(0.0) == plain.outstanding(0.0)


def test_edges_that_cannot_take_the_task_are_excluded_with_the_reason():
    edges = (
        make_edge("draining", state=EdgeState.DRAINING),
        make_edge("far", links={"moon": NO_LINK_TIME}),
        make_edge("full", max_queue=0),
        make_edge("ok"),
        make_edge("slow", step_times=make_step_times(step_base_s=9.0)),
        make_edge("tried"),
        make_edge("unreachable", state=EdgeState.UNREACHABLE),
        make_edge("updating", state=EdgeState.UPDATING, unavailable_s=0.5),
    )
    engine = make_engine()
    engine.decide(make_task("t0"), tuple(e for e in edges if e.edge_id == "full"), 0.0)
    decision = engine.decide(make_task("t1", deadline_at_s=5.0), edges, 0.0, frozenset({"tried"}))
    assert [c.edge_id for c in decision.candidates] == ["ok", "updating"]
    assert decision.excluded == (
        Exclusion("draining", "draining"),
        Exclusion("far", "no_link"),
        Exclusion("full", "queue_full"),
        Exclusion("slow", "late"),
        Exclusion("tried", "tried"),
        Exclusion("unreachable", "unreachable"),
    )


@pytest.mark.parametrize(
    ("edges", "deadline_at_s", "reason"),
    [
        ((), None, "unavailable"),
        ((make_edge(state=EdgeState.DRAINING),), None, "unavailable"),
        ((make_edge(),), 0.5, "late"),
    ],
)
def test_no_candidate_names_the_cause_and_counts_nothing(edges, deadline_at_s, reason):
    engine = make_engine()
    with pytest.raises(NoCandidateError) as caught:
        engine.decide(make_task(deadline_at_s=deadline_at_s), edges, 0.0)
    assert caught.value.reason == reason
    assert engine.outstanding(0.0) == {}


def test_a_region_without_a_link_of_its_own_uses_the_default_one():
    edge = make_edge(links={"default": Link(0.2, 0.0, 0.0), "west": NO_LINK_TIME})
    engine = make_engine()
    assert engine.explain(make_task(region="west"), (edge,), 0.0).candidates[0].uplink_s == 0.0
    assert engine.explain(make_task(region="east"), (edge,), 0.0).candidates[0].uplink_s == pytest.approx(0.2)


def test_a_task_is_at_one_edge_at_a_time():
    engine, edges = make_engine(), (make_edge(),)
    engine.decide(make_task("t0"), edges, 0.0)
    with pytest.raises(ValueError, match="withdraw it first"):
        engine.decide(make_task("t0"), edges, 0.0)
    engine.withdrawn("t0", 0.1)
    assert engine.decide(make_task("t0"), edges, 0.2).chosen == ("e1",)


def test_a_new_snapshot_shows_a_new_version_to_the_next_decision():
    old = make_edge("a", quality={"alpha-task": 0.2}), make_edge("b", quality={"alpha-task": 0.5})
    engine = make_engine(quality_scale=10.0)
    assert engine.explain(make_task(), old, 0.0).chosen == ("b",)
    new = dataclasses.replace(old[0], version="v2", quality={"alpha-task": 0.9}), old[1]
    assert engine.explain(make_task(), new, 0.0).chosen == ("a",)


def test_scores_that_users_send_back_move_decisions():
    edges = make_edge("a", version="va", quality={"alpha-task": 0.9}), make_edge("b", version="vb", quality={"alpha-task": 0.7})
    engine = make_engine(quality_scale=10.0)
    assert engine.explain(make_task(), edges, 0.0).chosen == ("a",)
    for _ in range(20):
        engine.scored("alpha-task", "va", 0.1)
    assert engine.explain(make_task(), edges, 0.0).chosen == ("b",)


def test_observed_inference_times_correct_what_an_edge_publishes():
    edges = (make_edge("slow"), make_edge("steady"))
    engine = make_engine(quality_scale=0.0)
    for n in range(30):
        edge_id = engine.decide(make_task(f"t{n}"), edges, float(n)).chosen[0]
        engine.finished(f"t{n}", observed(inference_s=5.0 if edge_id == "slow" else 1.0), n + 0.9)
    by_id = {c.edge_id: c.inference_s for c in engine.explain(make_task(), edges, 99.0).candidates}
    assert by_id["steady"] == pytest.approx(1.0, rel=0.1)
    assert by_id["slow"] > 1.3


def test_answer_lengths_are_learnt_by_task_type():
    engine, edges = make_engine(), (make_edge(),)
    for n in range(60):
        engine.decide(make_task(f"t{n}"), edges, float(n))
        engine.finished(f"t{n}", observed(output_tokens=4), n + 0.5)
    assert engine.explain(make_task(), edges, 99.0).candidates[0].output_tokens == pytest.approx(4.0, rel=0.1)


def test_the_same_inputs_and_seed_give_the_same_decisions():
    edges = tuple(make_edge(f"e{n}", max_batch=2) for n in range(6))

    def run():
        engine = make_engine("onto", seed=3, policy_options={"ties": "random"})
        return [engine.decide(make_task(f"t{n}", alpha=0.1 + n % 9 / 10), edges, n / 50).chosen for n in range(150)]

    assert run() == run()


def test_candidates_of_a_decision_stay_as_they_were_when_it_was_taken():
    engine, edges = make_engine(), (make_edge(),)
    first = engine.decide(make_task("t0"), edges, 0.0)
    engine.decide(make_task("t1"), edges, 0.0)
    assert first.candidates[0].outstanding.num_tasks == 0
    assert first.candidates[0].queue_wait_s == 0.0


def test_an_edge_that_describes_no_links_is_reached_from_every_region_at_no_cost():
    candidate = make_engine().explain(make_task(region="anywhere"), (make_edge(links={}),), 0.0).candidates[0]
    assert (candidate.uplink_s, candidate.downlink_s) == (0.0, 0.0)
