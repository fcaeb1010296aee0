"""What every registered offload policy keeps to, whoever adds it: one body over all of them, in every form that they come in."""

from __future__ import annotations

import ast
import inspect
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from services.core.offload.engine import offload_engine
from services.core.offload.policies import LearningPolicy, names, options, policy
from services.core.offload.values import EdgeState, Link, NoCandidateError, Observed, Work
from tests.builders import make_candidate, make_candidates, make_edge, make_step_times, make_task

TASK_TYPES = ("ask", "pick", "sum")
CLOCKS = {"time", "datetime", "asyncio", "random", "secrets", "os", "uuid"}


def forms(name: str) -> list[dict[str, Any]]:
    """Default options, and each form and rule that the policy has."""
    given: list[dict[str, Any]] = [{}]
    if "form" in options(name):
        given.append({"form": "paper"})
    if name == "mas":
        given += [{"rule": "ucb1"}, {"form": "paper", "rule": "ucb1"}]
    if name == "moe_load":
        given += [{"form": "greedy", "interval_s": 0.5}, {"form": "anti-correlation", "interval_s": 0.5}]
    if name == "lcs":
        given.append({"form": "paper", "consecutive": 2})
    return given


EVERY = [pytest.param(name, given, id=f"{name}-{'-'.join(map(str, given.values()))}") for name in names() for given in forms(name)]
every_policy = pytest.mark.parametrize(("name", "given"), EVERY)


def make_edges(num_edges=5, **overrides):
    return tuple(
        make_edge(
            f"edge-{n}",
            version=f"v{n}",
            quality={t: ((3 * n + 2 * i) % 7) / 7 for i, t in enumerate(TASK_TYPES)},
            step_times=make_step_times(step_base_s=0.01 * (1 + n % 3), step_row_s=0.002),
            links={"east": Link(0.001 * n, 0.0, 0.0), "default": Link(0.002, 0.0, 0.0)},
            max_batch=1 + n % 3,
            **overrides,
        )
        for n in range(num_edges)
    )


def make_engine(name, given, seed=3, quality_scale=1.0):
    return offload_engine(name, quality_scale=quality_scale, rng=np.random.default_rng(seed), policy_options=given)


def serve(engine, num_tasks=160, edges=None, updates=True):
    """Decide, start, finish; one task in seven fails, one edge gets a new version half way and one leaves. Decisions in order."""
    rng = np.random.default_rng(11)
    edges = edges or make_edges()
    decisions, open_tasks = [], []
    for n in range(num_tasks):
        now_s = 0.02 * n
        if n == num_tasks // 2 and updates:
            edges = (replace(edges[0], version="v0-new", quality=dict.fromkeys(TASK_TYPES, 0.9)), *edges[1:-1])
        task_type = TASK_TYPES[int(rng.integers(3))]
        known = task_type if n % 5 else None
        task = make_task(
            f"t{n}",
            task_type=known,
            posterior={known: 1.0} if known else {"ask": 0.5, "pick": 0.5},
            user_id=f"user-{int(rng.integers(8))}",
            region="east" if n % 2 else "west",
            alpha=0.1 + 0.9 * float(rng.random()),
            arrived_at_s=now_s,
        )
        decision = engine.decide(task, edges, now_s)
        decisions.append(decision)
        open_tasks.append((task.task_id, decision, task_type))
        while len(open_tasks) > 6:
            task_id, taken, kind = open_tasks.pop(0)
            if n % 7 == 0:
                engine.withdrawn(task_id, now_s)
            else:
                version = taken.candidate(taken.chosen[0]).version
                engine.finished(task_id, Observed(0.0, 0.1 + 0.1 * float(rng.random()), 10, 8, version, kind), now_s)
    return decisions


@every_policy
def test_equal_inputs_and_seed_give_equal_decisions(name, given):
    first = [(d.chosen, d.reason) for d in serve(make_engine(name, given))]
    assert first == [(d.chosen, d.reason) for d in serve(make_engine(name, given))]


@every_policy
def test_only_candidates_are_chosen_one_each_and_for_a_reason_in_words(name, given):
    for decision in serve(make_engine(name, given)):
        assert len(decision.chosen) == 1
        assert decision.chosen[0] in [c.edge_id for c in decision.candidates]
        assert len(decision.reason) > 5
        assert not any(character.isdigit() for character in decision.reason)
        assert decision.policy == name


@every_policy
def test_edges_that_were_tried_or_cannot_serve_are_left_alone(name, given):
    edges = (*make_edges(), make_edge("draining", state=EdgeState.DRAINING), make_edge("gone", state=EdgeState.UNREACHABLE))
    engine = make_engine(name, given)
    serve(engine, 60, updates=False)
    for n in range(40):
        task = make_task(f"x{n}", task_type="ask", user_id=f"user-{n % 8}", region="east", arrived_at_s=2.0)
        chosen = engine.decide(task, edges, 2.0, tried=frozenset({"edge-0", "edge-3"})).chosen[0]
        assert chosen in {"edge-1", "edge-2", "edge-4"}
        engine.withdrawn(task.task_id, 2.0)


@every_policy
def test_explaining_is_what_deciding_would_do_and_changes_nothing(name, given):
    plain, asked = make_engine(name, given), make_engine(name, given)
    edges = make_edges()
    for n in range(60):
        task = make_task(f"t{n}", task_type=TASK_TYPES[n % 3], user_id=f"user-{n % 4}", region="east", arrived_at_s=0.05 * n)
        explained = asked.explain(task, edges, 0.05 * n)
        decided = asked.decide(task, edges, 0.05 * n)
        assert decided.chosen == explained.chosen == plain.decide(task, edges, 0.05 * n).chosen
        assert decided.reason == explained.reason


@every_policy
def test_a_single_candidate_is_taken(name, given):
    engine = make_engine(name, given)
    for n in range(20):
        assert engine.decide(make_task(f"t{n}", arrived_at_s=0.1 * n), (make_edge("only"),), 0.1 * n).chosen == ("only",)


@every_policy
def test_no_candidate_at_all_is_an_error_and_the_policy_goes_on(name, given):
    engine = make_engine(name, given)
    with pytest.raises(NoCandidateError):
        engine.decide(make_task("t0"), (make_edge(state=EdgeState.DRAINING),), 0.0)
    assert engine.decide(make_task("t0"), (make_edge("only"),), 0.0).chosen == ("only",)


@every_policy
@pytest.mark.parametrize(
    "odd",
    [
        {"queue_wait_s": np.inf, "completion_time_s": np.inf, "cost": np.inf},
        {"quality": 0.0},
        {"inference_s": 0.0, "completion_time_s": 0.0, "cost": 0.0},
        {"outstanding": Work(num_tasks=10**6)},
    ],
    ids=["endless wait", "no quality", "no time", "long queue"],
)
@pytest.mark.parametrize("all_odd", [True, False])
def test_odd_estimates_of_one_edge_or_of_all_are_no_trouble(name, given, odd, all_odd):
    candidates = make_candidates(*(make_candidate(f"e{n}", **(odd if all_odd or n == 1 else {})) for n in range(3)))
    made, rng = policy(name, **given), np.random.default_rng(0)
    for n in range(12):
        task = make_task(f"t{n}", user_id=f"u{n % 3}", arrived_at_s=0.3 * n)
        choice = made.choose(task, candidates, rng)
        assert choice.rows[0] in range(3)
        made.chosen(tuple(candidates.edges[row].edge_id for row in choice.rows))
        if isinstance(made, LearningPolicy):
            made.sent(task, candidates, choice.rows)


@every_policy
def test_exact_ties_and_task_types_that_no_manifest_knows_are_decided(name, given):
    edges = tuple(make_edge(f"e{n}", quality={}) for n in range(4))
    engine = make_engine(name, given)
    for n in range(20):
        task = make_task(f"t{n}", task_type=None, posterior={}, user_id=f"u{n}", arrived_at_s=0.0)
        assert engine.decide(task, edges, 0.0).chosen[0] in {edge.edge_id for edge in edges}


@every_policy
def test_edges_that_come_and_go_between_decisions_are_no_trouble(name, given):
    rng, engine, edges = np.random.default_rng(4), make_engine(name, given), make_edges(6)
    for n in range(80):
        present = tuple(edge for edge in edges if rng.random() < 0.5) or edges[:1]
        task = make_task(f"t{n}", task_type="ask", user_id=f"u{n % 5}", region="east", arrived_at_s=0.1 * n)
        assert engine.decide(task, present, 0.1 * n).chosen[0] in {edge.edge_id for edge in present}
        engine.finished(task.task_id, Observed(0.0, 0.1, 10, 8, "v1", "ask"), 0.1 * n + 0.05)


@every_policy
def test_what_it_remembers_does_not_grow_with_tasks_or_users(name, given):
    def remembered(made):
        return sum(len(value) for value in vars(made).values() if hasattr(value, "__len__"))

    made, rng = policy(name, **given), np.random.default_rng(0)
    candidates = make_candidates(*(make_candidate(f"e{n}") for n in range(3)))
    sizes = []
    for n in range(2400):
        task = make_task(f"t{n}", user_id=f"user-{n}", arrived_at_s=0.01 * n)
        choice = made.choose(task, candidates, rng)
        made.chosen(tuple(candidates.edges[row].edge_id for row in choice.rows))
        if isinstance(made, LearningPolicy):
            made.sent(task, candidates, choice.rows)
        if n in (1199, 2399):
            sizes.append(remembered(made) if hasattr(made, "__dict__") else 0)
    assert sizes[1] - sizes[0] < 60  # of 1200 tasks of as many users


@pytest.mark.parametrize("name", names())
def test_no_policy_imports_a_clock_or_a_source_of_chance(name):
    """Time enters as `arrived_at_s`, chance as the generator passed to `choose`."""
    tree = ast.parse(inspect.getsource(sys.modules[type(policy(name)).__module__]))
    imported = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & CLOCKS
    assert "default_rng" not in {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize("name", names())
def test_a_form_or_an_option_that_does_not_exist_is_refused_with_what_there_is(name):
    with pytest.raises(ValueError, match="has no option 'colour'"):
        policy(name, colour="red")
    if "form" in options(name):
        with pytest.raises(ValueError, match="form is 'best': choose"):
            policy(name, form="best")
