"""Upper anchors: the optimum of small cases against brute force, every policy against it, and an oracle whose times are the true ones."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from loadgen.simulator.edge import Edge, EdgeSite
from loadgen.simulator.figures import figures
from loadgen.simulator.foresight import run_on
from loadgen.simulator.load import Load, draw_load
from loadgen.simulator.model import SimulatedVersion
from loadgen.simulator.optimum import Case, Objective, optimum, value_of
from loadgen.simulator.scenario import EdgeGroup, LoadOptions, Scenario, scenario
from loadgen.simulator.simulation import ORACLE, simulate
from loadgen.simulator.sites import edge_sites, first_versions
from loadgen.simulator.stated import StatedModel, StatedOptions
from services.core.offload import policies
from services.core.offload.values import StepTimes

OBJECTIVES: tuple[Objective, ...] = ("positive_cost", "weighted_cost")
NUM_TASKS = 12
SMALL = Scenario(
    "small",
    "",
    StatedModel(StatedOptions(("a", "b", "c"), whole_share=0.3, prefill_base_s=0.05, prefill_token_s=0.001, step_base_s=0.05)),
    (
        EdgeGroup("one", memory_share=0.3, speed=0.5, max_batch=1, mix={"a": 1.0}),
        EdgeGroup("two", memory_share=0.3, max_batch=1, mix={"b": 1.0}),
        EdgeGroup("wide", memory_share=0.6, speed=0.8, max_batch=1, mix={"b": 0.5, "c": 0.5}),
    ),
    LoadOptions(3.0),
    duration_s=30.0,
    quality_scale=2.0,
)


def first_tasks(load: Load, num_tasks: int) -> Load:
    columns = {field.name: getattr(load, field.name) for field in dataclasses.fields(Load)}
    cut: dict[str, Any] = {name: value[:num_tasks] for name, value in columns.items() if isinstance(value, np.ndarray)}
    return dataclasses.replace(load, **cut)


def case_of(made: Scenario, load: Load, seed: int) -> Case:
    sites = edge_sites(made, seed)
    versions = first_versions(made, sites, seed)
    times_s, quality = (np.empty((len(load), len(sites))) for _ in range(2))
    for n, (site, version) in enumerate(zip(sites, versions, strict=True)):
        times = site.step_times
        reading_s = times.prefill_base_s + times.prefill_token_s * load.prompt_tokens
        times_s[:, n] = reading_s + (times.step_base_s + times.step_row_s) * load.output_tokens
        quality[:, n] = [version.quality[load.task_types[t]] for t in load.task_type]
    return Case(load.at_s, times_s, quality, load.alpha, made.quality_scale)


def above_the_optimum(num_seeds: int, names: tuple[str, ...]) -> Iterator[dict[str, tuple[float, float]]]:
    """Of each small case, by policy: what it costs above the optimum, positive cost as a share and eq. (1) in seconds."""
    for seed in range(num_seeds):
        load = first_tasks(draw_load(SMALL, seed), NUM_TASKS)
        case = case_of(SMALL, load, seed)
        best = {objective: optimum(case, objective).value for objective in OBJECTIVES}
        told = {}
        for name in names:
            ran = figures(simulate(SMALL, load, name, "never", seed), SMALL.quality_scale)
            told[name] = (ran.positive_cost / best["positive_cost"] - 1.0, ran.weighted_cost - best["weighted_cost"])
        yield told


def random_case(rng: np.random.Generator, num_tasks: int = 6, num_edges: int = 3) -> Case:
    shape = (num_tasks, num_edges)
    return Case(np.sort(rng.random(num_tasks) * 2.0), rng.random(shape) + 0.3, rng.random(shape), rng.random(num_tasks), 2.0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_optimum_is_what_trying_everything_finds(objective):
    rng = np.random.default_rng(1)
    for _ in range(10):
        case = random_case(rng)
        tried = min(value_of(case, np.array(edges), objective) for edges in itertools.product(range(3), repeat=6))
        found = optimum(case, objective)
        assert found.value == pytest.approx(tried, abs=1e-12)
        assert value_of(case, found.edge, objective) == found.value


def test_without_quality_eq_1_is_the_makespan_and_two_edges_share_the_work():
    times_s = np.array([[3.0, 3.0], [3.0, 3.0], [2.0, 2.0], [2.0, 2.0], [2.0, 2.0]])
    case = Case(np.zeros(5), times_s, np.ones((5, 2)), np.zeros(5))
    assert optimum(case, "weighted_cost").value == pytest.approx(6.0)  # {3, 3} and {2, 2, 2}: Graham's example, list order gives 7


def test_a_case_with_columns_that_do_not_match_is_refused():
    with pytest.raises(ValueError, match="need shape"):
        Case(np.zeros(2), np.ones((3, 2)), np.ones((3, 2)), np.ones(3))
    with pytest.raises(ValueError, match="in the order in which they arrive"):
        Case(np.array([1.0, 0.0]), np.ones((2, 2)), np.ones((2, 2)), np.ones(2))


def test_no_policy_beats_the_optimum_and_the_oracle_comes_nearer_than_onto():
    told = list(above_the_optimum(12, (*policies.names(), ORACLE)))
    for one in told:
        for name, (share, seconds) in one.items():
            assert share >= -1e-9, name
            assert seconds >= -1e-9, name
    means = {name: float(np.mean([one[name][0] for one in told])) for name in told[0]}
    assert means[ORACLE] < 0.06
    assert means[ORACLE] < means["onto"] < means["random"]


def make_edge(max_batch: int = 2) -> Edge:
    site = EdgeSite("only", {}, StepTimes(0.1, 0.05, 0.2, 0.01), 0.3, max_batch, 10)
    version = SimulatedVersion("v", {"a": 1.0}, {"a": 1.0}, {"a": 1.0}, {}, 1, 0.0)
    return Edge(site, version, [10, 20, 30], [4, 6, 2])


def test_what_others_lose_is_the_reading_that_halts_them_and_the_wider_batch():
    edge = make_edge()
    edge.arrived(0, 0.0)
    edge.turn(0.0)  # reads until 0.3, then four steps of 0.15
    _, alone = run_on(edge.copy(), (), 0.4, 2.0)
    starts, both = run_on(edge.copy(), [(2, 0.4)], 0.4, 2.0)
    assert alone == pytest.approx({0: 0.9})
    assert starts == pytest.approx({2: 0.45})  # the next boundary
    # Reads 30 tokens until 0.95, two steps of 0.2 for both, and what is left of task 0 alone: one step of 0.15.
    assert both == pytest.approx({2: 1.35, 0: 1.5})
    assert edge.num_running == 1  # the edge itself has not moved


def test_an_edge_that_empties_for_an_update_holds_its_queue_until_it_has_loaded():
    edge = make_edge()
    edge.arrived(0, 0.0)
    edge.turn(0.0)
    edge.admitting = False
    starts, ends = run_on(edge.copy(), [(1, 0.5)], 0.5, 2.0)
    assert ends[0] == pytest.approx(0.9)
    assert starts[1] == pytest.approx(2.9)
    edge = make_edge()
    edge.admitting, edge.available_at_s = False, 1.5
    starts, _ = run_on(edge.copy(), [(1, 0.5), (2, 1.7)], 0.5, 2.0)
    assert starts == pytest.approx({1: 1.5, 2: 2.05})  # task 1 is read until 1.9, and a step takes 0.15


@pytest.mark.parametrize("seed", [1, 2])
def test_the_oracle_predicts_to_the_instant_where_nothing_comes_after(seed):
    made = dataclasses.replace(scenario("drift"), duration_s=20.0)
    load = draw_load(made, seed)
    outcome = simulate(made, load, ORACLE, "never", seed)
    took_s = outcome.completed_at_s - load.at_s
    undisturbed = []
    for n in range(len(load)):
        after = (outcome.edge == outcome.edge[n]) & (load.at_s > load.at_s[n]) & (outcome.at_edge_s < outcome.left_at_s[n])
        if not after.any():
            undisturbed.append(n)
    assert len(undisturbed) >= 12
    assert outcome.predicted_completion_time_s[undisturbed] == pytest.approx(took_s[undisturbed], abs=1e-9)
    others = np.setdiff1d(np.arange(len(load)), undisturbed)  # some gain: with company their prompts are read sooner
    assert took_s[others].mean() > 1.05 * outcome.predicted_completion_time_s[others].mean()


def test_the_oracle_costs_less_than_onto_that_learns():
    made = scenario("drift", duration_s=90.0)
    load = draw_load(made, 1)
    told, learned = (figures(simulate(made, load, name, "portfolio", 1), 1.0).positive_cost for name in (ORACLE, "onto"))
    assert told < 0.97 * learned
