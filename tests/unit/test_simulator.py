"""The simulator: every task ends once, nothing takes negative time, the same seed gives the same bytes, updates go the way they go live."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from loadgen.bench.compiled import REPOSITORY, compiled_s
from loadgen.bench.simpy_model import Decided
from loadgen.bench.simulator import made as bench_scenario
from loadgen.bench.simulator import measure
from loadgen.cli.main import app
from loadgen.simulator.comparison import arms, compare
from loadgen.simulator.figures import figures, finished_tasks, interval
from loadgen.simulator.load import draw_load
from loadgen.simulator.scenario import EdgeGroup, LoadOptions, Phase, Scenario, UpdateOptions, names, scenario
from loadgen.simulator.simulation import Outcome, simulate
from loadgen.simulator.stated import StatedModel, StatedOptions
from services.core.offload import policies
from services.core.offload.values import Link

TRACE_ARRIVALS = np.linspace(0.0, 100.0, 500)


def make_scenario(**overrides) -> Scenario:
    values = {
        "name": "made",
        "about": "",
        "model": StatedModel(StatedOptions(("a", "b", "c"), prompt_tokens=20, prefill_token_s=0.001, step_row_s=0.002)),
        "edges": (EdgeGroup("one", max_batch=2, mix={"a": 1.0}), EdgeGroup("two", count=2, speed=2.0, memory_share=0.3, mix={"a": 1.0})),
        "load": LoadOptions(12.0, phases=(Phase(0.0, {"a": 1.0}), Phase(0.5, {"b": 0.5, "c": 0.5}))),
        "duration_s": 120.0,
        "updates": UpdateOptions(load_s=2.0),
        "triggers": {"jtom": {"min_tokens": 200, "interval_s": 5.0}},
    }
    return Scenario(**{**values, **overrides})


def run(made: Scenario, policy: str = "onto", trigger: str = "jtom", seed: int = 0) -> Outcome:
    return simulate(made, draw_load(made, seed), policy, trigger, seed)


@pytest.mark.parametrize("name", names())
def test_every_scenario_of_the_folder_runs_and_every_task_ends_once_in_order(name):
    made = dataclasses.replace(scenario(name), duration_s=60.0)
    outcome = simulate(made, draw_load(made, 1, TRACE_ARRIVALS), "onto", "jtom", 1)
    done = outcome.completed
    assert done.all()
    assert (outcome.edge[done] >= 0).all()
    instants = (outcome.load.at_s, outcome.at_edge_s, outcome.started_at_s, outcome.left_at_s, outcome.completed_at_s)
    for earlier, later in itertools.pairwise(instants):
        assert (later[done] >= earlier[done]).all()
    assert len({task.task_id for task in finished_tasks(outcome)}) == len(outcome.load)


def test_tasks_that_no_edge_has_room_for_are_rejected_and_counted():
    made = make_scenario(edges=(EdgeGroup("one", max_batch=1, max_queue=1),))
    outcome = run(made)
    told = figures(outcome, 1.0)
    assert 0 < told.rejected < told.tasks
    assert told.rejected + len(finished_tasks(outcome)) == len(outcome.load)
    assert np.isnan(outcome.completed_at_s[~outcome.completed]).all()


def test_no_edge_computes_while_it_loads_a_version_and_none_runs_more_than_its_batch():
    made = make_scenario()
    outcome = run(made)
    assert outcome.updates
    for update in outcome.updates:
        index = outcome.edge_ids.index(update.edge_id)
        mine = outcome.edge == index
        began_s = update.at_s - update.downtime_s
        running = mine & (outcome.started_at_s < update.at_s - 1e-9) & (outcome.left_at_s > began_s + 1e-9)
        assert not running.any()
    slots = {"one": 2, "two-000": 4, "two-001": 4}
    for index, edge_id in enumerate(outcome.edge_ids):
        mine = outcome.edge == index
        starts, ends = np.sort(outcome.started_at_s[mine]), np.sort(outcome.left_at_s[mine])
        in_service = np.arange(1, len(starts) + 1) - np.searchsorted(ends, starts, side="right")
        assert in_service.max() == slots[edge_id]


def test_an_update_beside_the_running_version_costs_no_downtime():
    outcome = run(make_scenario(updates=UpdateOptions(load_s=2.0, beside=True)))
    assert outcome.updates
    assert all(update.downtime_s == 0.0 for update in outcome.updates)


def test_versions_follow_the_drift_and_quality_with_them():
    made = make_scenario(duration_s=400.0)
    with_updates, without = run(made), run(made, trigger="never")
    assert not without.updates
    assert figures(with_updates, 1.0).total_quality > 1.1 * figures(without, 1.0).total_quality
    assert any(update.at_s > 200.0 for update in with_updates.updates)


def test_every_policy_gets_the_same_load_of_a_seed_and_seeds_differ():
    made = make_scenario()
    first, again, other = draw_load(made, 3), draw_load(made, 3), draw_load(made, 4)
    for name in ("at_s", "user", "region", "task_type", "alpha", "prompt_tokens", "output_tokens", "score_draw"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.at_s[:50], other.at_s[:50])


def test_users_who_move_keep_asking_for_what_their_first_region_asks_for():
    made = dataclasses.replace(scenario("moving"), duration_s=3000.0)
    load = draw_load(made, 0)
    homes = np.arange(made.load.users) % 3
    at_home = load.region == homes[load.user]
    assert 0.2 < at_home.mean() < 0.5  # of three regions, some time after the start
    asked = {"centre": "facts", "east": "pronoun", "west": "alternative"}
    for user, home in enumerate(homes.tolist()):
        most = np.bincount(load.task_type[load.user == user]).argmax()
        assert load.task_types[most] == asked[load.regions[home]]


def test_the_broker_may_not_know_task_types_and_scores_may_be_drawn():
    made = make_scenario(hide_task_type=True, draw_scores=True)
    outcome = run(made)
    assert set(np.unique(outcome.quality)) == {0.0, 1.0}
    assert outcome.completed.all()


def test_the_json_of_the_same_seeds_is_the_same_byte_for_byte_and_has_the_promised_keys():
    arguments = ["simulate", "drift", "--policies", "onto,random", "--seeds", "2", "--duration", "60", "--json", "--jobs"]
    first, second = (CliRunner().invoke(app, [*arguments, jobs]) for jobs in ("1", "2"))
    assert first.exit_code == 0
    assert first.stdout == second.stdout
    told = json.loads(first.stdout)
    for policy in ("onto", "random"):
        for figure in (
            "positive_cost", "weighted_cost", "table_cost", "process_time_s", "completion_p99_s", "total_quality", "updates", "downtime_s"
        ):  # fmt: skip
            assert set(told["policies"][policy][figure]) == {"mean", "ci95"}


def test_people_get_a_table_and_progress_on_stderr():
    result = CliRunner().invoke(
        app, ["simulate", "bursty", "--policies", "onto", "--triggers", "jtom,never", "--seeds", "1", "--duration", "30"]
    )
    assert result.exit_code == 0
    assert "positive cost" in result.stdout
    assert "onto+never" in result.stdout
    assert "seed 0" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", "drfit"], "did you mean drift?"),
        (["simulate", "drift", "--policies", "onot"], "did you mean onto?"),
        (["simulate", "drift", "--triggers", "jtmo"], "did you mean jtom?"),
        (["simulate", "drift", "--trace", "x.csv"], "draws its own arrivals"),
        (["simulate", "trace"], "give the file with --trace"),
    ],
)
def test_bad_input_ends_in_one_line_that_names_the_cure(arguments, message):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("duraton_s = 5.0", "duraton_s is unknown; did you mean duration_s?"),
        ("[load]\nrate_per_s = 1.0\nusrs = 3", "load: usrs is unknown; did you mean users?"),
        ("[load]\nusers = 3", "load: rate_per_s is missing"),
        ("[load]\nrate_per_s = 'fast'", "load.rate_per_s: 'fast' is no number"),
        ("[load]\nrate_per_s = 1.0\n[[load.phases]]\nstart = 0.0\nmix = { fact = 1 }\n[[edges]]\nname = 'a'", "did you mean facts?"),
        ("[load]\nrate_per_s = 1.0\narrivals = 'psn'", "choose one of poisson"),
        ("[load]\nrate_per_s = 1.0", "give at least one [[edges]]"),
        ("[[edges]]\nname = 'a'\nspeed = 0\n[load]\nrate_per_s = 1.0", "edges[0]: speed is 0.0: it must be above 0"),
        ("[[edges]]\nname = 'a'\nmemory_share = 22\n[load]\nrate_per_s = 1.0", "edges[0]: memory_share is 22.0: a share from 0 to 1"),
        ("[load]\nrate_per_s = 1.0\nusers = 2.5", "load.users: 2.5 is no whole number"),
        ("[load]\nrate_per_s = 1.0\nusers = 0", "load: users is 0: it must be 1 or more"),
    ],
)
def test_a_scenario_file_with_a_mistake_is_refused_by_field_and_cure(tmp_path, text, message):
    path = tmp_path / "made.toml"
    path.write_text(text)
    result = CliRunner().invoke(app, ["simulate", str(path)])
    assert result.exit_code == 2
    assert message in result.stderr


def test_arms_are_named_by_policy_and_by_trigger_where_there_are_several():
    assert [arm.name for arm in arms(["onto"], ["jtom"])] == ["onto"]
    assert [arm.name for arm in arms(["onto", "round-robin"], ["jtom", "never"])] == [
        "onto+jtom", "onto+never", "round_robin+jtom", "round_robin+never"
    ]  # fmt: skip


def test_differences_between_arms_are_paired_by_seed():
    made = make_scenario(duration_s=40.0)
    compared = compare(made, arms(["onto", "random"], ["never"]), range(3), lambda *_: None)
    difference = compared.paired("onto", "random", "positive_cost")
    each = [a.positive_cost - b.positive_cost for a, b in zip(compared.runs["onto"], compared.runs["random"], strict=True)]
    assert difference == interval(each)
    assert difference.mean < 0.0


def test_an_interval_is_students_t():
    assert interval([1.0, 2.0, 3.0]).mean == 2.0
    assert interval([1.0, 2.0, 3.0]).ci95 == pytest.approx(4.303 / np.sqrt(3.0), rel=1e-3)
    assert interval([5.0]).ci95 == 0.0


def test_an_oracle_that_is_told_lengths_and_qualities_predicts_better_and_costs_no_more():
    made = make_scenario(duration_s=200.0, load=LoadOptions(30.0), quality_scale=2.0)
    told, guessed = (figures(run(made, policy, "never"), 2.0) for policy in ("oracle", "onto"))
    assert told.wait_prediction_error_s < 0.8 * guessed.wait_prediction_error_s
    assert told.positive_cost < guessed.positive_cost
    assert [arm.name for arm in arms(["all", "oracle"], ["jtom"])][-1] == "oracle"


def test_all_policies_are_the_registered_ones_the_seven_as_strong_as_they_come_ours_and_the_anchors():
    made = {arm.name: arm for arm in arms(["all"], ["jtom"])}
    assert set(made) == {*policies.names(), "ours", "quantised", "static", "oracle", "clairvoyant"}
    assert (made["multi_moe"].trigger, made["onto"].trigger, made["ours"].trigger) == ("never", "jtom", "portfolio")
    assert [arm.name for arm in arms(["ours", "onto"], ["jtom", "never"])] == ["ours", "onto+jtom", "onto+never"]


def test_a_comparison_names_the_best_of_the_seven():
    made = make_scenario(duration_s=60.0, load=LoadOptions(20.0))
    compared = compare(made, arms(["ours", "onto", "lcs", "qual_greedy", "random"], ["never"]), (1, 2), lambda *_: None)
    best = compared.best_baseline()
    assert best is not None
    worst = {"lcs": "qual_greedy", "qual_greedy": "lcs"}[best]
    assert compared.paired(best, worst, "positive_cost").mean < 0.0
    assert compare(made, arms(["onto"], ["never"]), (1,), lambda *_: None).best_baseline() is None


def test_portfolio_beats_jtom_where_the_mix_changes():
    """The demo model as measured, 12 edges, three phases: a tenth of the scenario's own length each."""
    made = scenario("drift", duration_s=240.0)
    told: dict[str, list[float]] = {}
    for seed in (1, 2):
        load = draw_load(made, seed)
        for trigger in ("jtom", "portfolio"):
            told.setdefault(trigger, []).append(figures(simulate(made, load, "onto", trigger, seed), made.quality_scale).positive_cost)
    assert sum(told["portfolio"]) < sum(told["jtom"])


@pytest.mark.parametrize("region", ["west", "east"])
def test_portfolio_teaches_the_edge_near_to_the_users_what_they_ask_for(region):
    near, far = Link(0.005, 0.0, 0.0), Link(0.2, 0.0, 0.0)
    groups = [EdgeGroup(name, mix={"a": 1.0}, regions={name: near, other: far}) for name, other in (("west", "east"), ("east", "west"))]
    phases = tuple(Phase(0.0, {"b": 9.0, "a": 1.0} if name == region else {"a": 1.0}, name) for name in ("west", "east"))
    made = make_scenario(edges=tuple(groups), load=LoadOptions(6.0, phases=phases))
    outcome = run(made, trigger="portfolio")
    assert [(update.edge_id, update.mix) for update in outcome.updates] == [(region, {"b": 1.0})]


def test_simpy_with_the_same_engine_serves_the_same_load_in_nearly_the_same_time():
    scenario = bench_scenario(10, 3000)
    load = draw_load(scenario, 0)
    ours = simulate(scenario, load, "onto", "never", 0).completed_at_s - load.at_s
    theirs = Decided(scenario, load).run() - load.at_s
    assert not np.isnan(theirs).any()
    assert float(theirs.mean()) == pytest.approx(float(ours.mean()), rel=0.1)  # there, tasks do not wait for the next step to begin


def test_sources_are_not_measured_in_place_of_a_compiled_copy():
    with pytest.raises(RuntimeError, match="sources were measured instead"):
        compiled_s(REPOSITORY, 100)


def test_the_benchmark_measures_ours_and_simpy_in_one_run():
    told = measure(1, (10,), lambda _: None, num_tasks=1000)
    assert told.compiled_tasks_per_s is None
    assert told.ratio_simpy == pytest.approx(told.tasks_per_s / told.simpy_tasks_per_s)
    assert told.ratio_simpy_onto == pytest.approx(told.without_updates / told.simpy_onto_tasks_per_s)
    assert set(told.task_s_by_edges) == {10}
    assert min(told.tasks_per_s, told.without_updates, told.round_robin) > 0.0
    ran = CliRunner().invoke(app, ["bench", "--help"])
    assert "simulator" in ran.output
