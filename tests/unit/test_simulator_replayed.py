"""A replay that was kept, as a scenario and a load; a run that the simulator itself made is predicted to within noise."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from typer.testing import CliRunner

from loadgen.cli.main import app
from loadgen.recorded import RECORDS, RUN, RecordedRunError, merge_rules, read_run, write_run
from loadgen.recorder import Recorder
from loadgen.results import EdgeDescription, EdgeSample, Finished, Outcome, ReplayResult, Swap, Update
from loadgen.simulator.errors import ProfileError, SimulationInputError
from loadgen.simulator.figures import figures
from loadgen.simulator.load import draw_load
from loadgen.simulator.measured import read_profile
from loadgen.simulator.prediction import Pair, predict
from loadgen.simulator.replayed import replayed_load, replayed_scenario
from loadgen.simulator.scenario import PROFILES, EdgeGroup, LoadOptions, Phase, Scenario, UpdateOptions
from loadgen.simulator.service_times import step_times
from loadgen.simulator.simulation import simulate
from services.core.offload.values import Link, StepTimes

TIMES = {"small": StepTimes(0.045, 0.006, 0.05, 0.0008), "large": StepTimes(0.022, 0.003, 0.025, 0.0004)}
LINKS = {"west": Link(0.005, 2.5e6, 5e6), "east": Link(0.04, 1.25e6, 2.5e6)}
BYTES = {"small": 1_200_000, "large": 1_700_000}
CALL_S = 0.008
JTOM = {"interval_s": 3.0, "adjustment_s": 1.0, "min_tokens": 120, "recent_tasks": 40}


@cache
def demo():
    return read_profile(PROFILES / "demo.json")


@cache
def made_run():
    """What a replay would have kept of a simulated run: two edges, a drift, updates."""
    scenario = Scenario(
        name="made",
        about="",
        model=demo(),
        edges=tuple(
            EdgeGroup(name, memory_share=share, step_times=TIMES[name], regions=LINKS, mix={leader: 1.0})
            for name, share, leader in (("small", 0.22, "facts"), ("large", 0.37, "pronoun"))
        ),
        load=LoadOptions(
            rate_per_s=9.0, phases=(Phase(0.0, {"facts": 0.5, "pronoun": 0.5}), Phase(0.4, {"question": 0.6, "sentence": 0.4}))
        ),
        duration_s=60.0,
        draw_scores=True,
        updates=UpdateOptions(load_s=0.2, build_s=0.5, beside=True, report_interval_s=1.0),
        triggers={"jtom": JTOM},
    )
    load = draw_load(scenario, 5)
    outcome = simulate(scenario, replace(load, call_s=np.full(len(load), CALL_S)), "onto", "jtom", 5)
    return as_replayed(outcome), figures(outcome, 1.0)


def as_replayed(outcome):
    load = outcome.load
    finished = tuple(
        Finished(
            task_id=f"task-{n}",
            user_id=f"user-{load.user[n]}",
            region=load.regions[load.region[n]],
            task_type=load.task_types[load.task_type[n]],
            item_id="",
            alpha=float(load.alpha[n]),
            intended_at_s=float(load.at_s[n]),
            sent_at_s=float(load.at_s[n]),
            end_at_s=float(outcome.completed_at_s[n]),
            outcome=Outcome.COMPLETED,
            edge_id=outcome.edge_ids[outcome.edge[n]],
            prompt_bytes=int(load.prompt_bytes[n]),
            prompt_tokens=int(load.prompt_tokens[n]),
            output_tokens=int(load.output_tokens[n]),
            score=float(outcome.quality[n]),
            queue_wait_s=float(outcome.started_at_s[n] - outcome.at_edge_s[n]),
            inference_s=float(outcome.left_at_s[n] - outcome.started_at_s[n]),
        )
        for n in range(len(load))
    )
    mixes = {"small": {"facts": 1.0}, "large": {"pronoun": 1.0}}
    # Workers' fits begin with an idle device's times: half of what steps take.
    samples = tuple(
        EdgeSample(float(t), e, "v", "ready", 0, 0.0, 0, 1, 1, mixes[e], half(TIMES[e]) if t < 10 else TIMES[e])
        for t in range(60)
        for e in ("large", "small")
    )
    swap = Swap("a", "b", 0.15, 0.05, 0.0, 0.0, 1, 1)
    return ReplayResult(
        name="made",
        target="nowhere",
        policy="onto",
        base_model=demo().base_model,
        quality_scale=1.0,
        num_planned=len(load),
        planned_s=60.0,
        duration_s=61.0,
        finished=finished,
        samples=samples,
        updates=tuple(Update(u.at_s, u.edge_id, u.version, u.requested_at_s, swap=swap) for u in outcome.updates),
        scores_sent=len(load),
        edges=tuple(EdgeDescription(e, BYTES[e], 4, 64, LINKS) for e in ("large", "small")),
        merging=merge_rules({"trigger": "jtom", "controller": JTOM, "worker": {"report_interval_s": 1.0}}),
    )


def half(times):
    return StepTimes(times.step_base_s / 2, times.step_row_s / 2, times.prefill_base_s / 2, times.prefill_token_s / 2)


def quiet(*_):
    """Says nothing."""


def test_a_run_that_the_simulator_made_is_predicted_from_what_a_replay_would_have_kept_of_it():
    run, true = made_run()
    predicted = predict(run, demo(), "never", range(3), quiet)
    assert (predicted.policy, predicted.trigger, predicted.num_tasks) == ("onto", "jtom", len(run.finished))
    assert predicted.process_time_s.live == pytest.approx(true.process_time_s)
    assert abs(predicted.process_time_s.error) < 0.04
    assert abs(predicted.total_quality.error) < 0.04
    for live, simulated in predicted.edges.values():
        assert simulated.inference_s == pytest.approx(live.inference_s, rel=0.06)
        assert simulated.travel_s == pytest.approx(live.travel_s, rel=0.05)
        assert simulated.updates == pytest.approx(live.updates, abs=1.1)


def test_another_physics_than_the_runs_is_not_mistaken_for_it():
    run, _ = made_run()
    never = replace(run, merging=merge_rules({"trigger": "never"}))
    assert predict(never, demo(), "never", range(2), quiet).total_quality.error < -0.05
    slow = tuple(replace(task, inference_s=2.0 * task.inference_s) for task in run.finished)
    assert predict(replace(run, finished=slow), demo(), "jtom", range(2), quiet).process_time_s.error > 0.15


def test_the_load_is_the_tasks_that_were_completed_with_the_lengths_of_their_answers():
    run, _ = made_run()
    lost = replace(run, finished=(replace(run.finished[0], outcome=Outcome.FAILED), *run.finished[1:]), merging=None)
    load = replayed_load(lost, replayed_scenario(lost, demo()), 0)
    assert len(load) == len(run.finished) - 1
    assert load.output_tokens.tolist() == [task.output_tokens for task in run.finished[1:]]
    assert [load.regions[n] for n in load.region] == [task.region for task in run.finished[1:]]
    assert predict(lost, demo(), "jtom", [0], quiet).num_left_out == 1


def test_the_scenario_has_the_edges_as_they_were_listed_and_what_a_call_took():
    run, _ = made_run()
    scenario = replayed_scenario(run, demo())
    groups = {group.name: group for group in scenario.edges}
    assert {name: group.memory_share for name, group in groups.items()} == {"large": 0.37, "small": 0.22}
    assert groups["small"].mix == {"facts": 1.0}
    assert replayed_load(run, scenario, 0).call_s == pytest.approx(CALL_S)
    assert scenario.triggers["jtom"]["recent_tasks"] == 40
    assert scenario.updates.beside
    assert scenario.updates.build_s == pytest.approx(0.5)


def test_step_times_have_the_height_of_the_tasks_inference_and_the_shape_that_the_worker_fitted():
    run, _ = made_run()
    for edge in run.edges:
        found = step_times(edge, run.samples, run.completed)
        assert found.step_base_s == pytest.approx(TIMES[edge.edge_id].step_base_s, rel=0.05)
        assert found.step_row_s / found.step_base_s == pytest.approx(TIMES[edge.edge_id].step_row_s / TIMES[edge.edge_id].step_base_s)
    with pytest.raises(SimulationInputError, match="no step times of edge large"):
        step_times(run.edges[0], (), run.completed)


def test_a_profile_of_another_model_or_dtype_is_refused_with_the_cure():
    run, _ = made_run()
    with pytest.raises(SimulationInputError, match=r"the run is of other: make its profile"):
        replayed_scenario(replace(run, base_model="other"), demo())
    with pytest.raises(ProfileError, match=r"no measured version fits into 1000 bytes.*--dtype"):
        replayed_scenario(replace(run, edges=(replace(run.edges[0], memory_bytes=1000),)), demo())


def test_a_kept_run_is_read_back_as_it_was(tmp_path):
    run, _ = made_run()
    keep(run, tmp_path)
    assert read_run(tmp_path) == run
    (tmp_path / RUN).unlink()
    with pytest.raises(RecordedRunError, match=r"run\.json: No such file.*moedge replay --out"):
        read_run(tmp_path)


def keep(run, folder):
    write_run(folder, run)
    with Recorder(folder / RECORDS) as recorder:
        for record in reversed(run.finished):
            recorder.write(record)


def test_the_command_prints_both_side_by_side(tmp_path):
    run, true = made_run()
    keep(run, tmp_path)
    told = CliRunner().invoke(app, ["simulate", "--from-replay", str(tmp_path), "--seeds", "2", "--json"])
    assert told.exit_code == 0, told.output
    document = json.loads(told.stdout)
    assert document["process_time_s"]["live"] == pytest.approx(true.process_time_s)
    assert set(document["edges"]) == {"large", "small"}
    shown = CliRunner().invoke(app, ["simulate", "--from-replay", str(tmp_path), "--seeds", "1"], env={"COLUMNS": "80"})
    assert "process time" in shown.stdout
    assert "inference s" in shown.stdout  # no heading is broken
    both = CliRunner().invoke(app, ["simulate", "drift", "--from-replay", str(tmp_path)])
    assert both.exit_code == 2
    assert "scenario: name one, or give --from-replay" in both.output


def test_an_error_is_relative_to_the_live_figure():
    assert Pair(200.0, 230.0).error == pytest.approx(0.15)
    assert Pair(0.0, 0.0).error == 0.0
    assert np.isfinite(Pair(0.0, 1.0).error)
