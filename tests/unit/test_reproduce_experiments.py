"""Experiments of the paper: what they compute is right where the answer is known, and two of them run from the command to the page."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from loadgen.cli.main import app
from loadgen.experiments._options import WITHIN, off_the_law
from loadgen.experiments._paper import printed
from loadgen.experiments._sweep_claims import below, claims
from loadgen.experiments._sweeps import Point, Sweep, spoken, whole
from loadgen.experiments.bias import FEEDBACK, WRONG, Given, error_of
from loadgen.experiments.diversity import always_served, spread_of
from loadgen.reproduce.page import cell
from loadgen.reproduce.runs import (
    JTOM,
    ONTO,
    PAPER_FORMS,
    PAPER_SERVERS,
    STATIC,
    STRONG_FORMS,
    Run,
    figures_of,
    scenario_of,
    usual_task_s,
    utilisation,
)
from loadgen.reproduce.values import Verdict
from loadgen.simulator.figures import Interval


def made_sweep(**costs: float) -> Sweep:
    """One point; every figure of an arm is its cost, of ten tasks, in two seeds that differ a little."""
    arms = {arm.name: 10.0 for arm in (*PAPER_FORMS, *STRONG_FORMS, ONTO)} | {"JTOM": 5.0, "ours": 4.0} | costs
    runs = {}
    for arm, cost in arms.items():
        figures = ("weighted_cost", "positive_cost", "process_time_s", "total_quality", "table_cost")
        runs[arm, 1.0] = [{name: cost * (1.0 + 0.001 * seed) for name in figures} | {"tasks": 10.0} for seed in range(2)]
    return Sweep((Point(1.0, 1.0, 10),), runs)


def test_half_the_cost_is_a_saving_of_half():
    swept = made_sweep()
    assert swept.saving("JTOM", "ONTO", "positive_cost").mean == pytest.approx(50.0)
    assert swept.saving("JTOM", "ONTO", "positive_cost").ci95 == pytest.approx(0.0, abs=1e-9)
    assert swept.ranked(1.0, "positive_cost", ("ONTO", "JTOM", "ours")) == ["ours", "JTOM", "ONTO"]


def test_costs_brought_to_one_are_compared_above_the_least():
    swept = made_sweep(JTOM=0.0, ours=5.0)
    assert swept.normalised_saving("ours", "ONTO", "weighted_cost", ("ONTO", "JTOM")).mean == pytest.approx(50.0)
    assert swept.normalised_saving("JTOM", "ONTO", "weighted_cost", ("ONTO", "ours")).mean == pytest.approx(100.0)


def test_claims_of_a_sweep_follow_its_figures():
    better, worse = ({claim.name: claim for claim in claims(made_sweep(JTOM=cost), "fig", "Fig.", "servers")} for cost in (5.0, 11.0))
    assert better["fig-lowest-cost"].verdict is Verdict.REPRODUCED
    assert better["fig-16-positive"].verdict is Verdict.REPRODUCED
    assert worse["fig-lowest-cost"].verdict is Verdict.CONTRADICTED
    assert worse["fig-16-positive"].verdict is Verdict.CONTRADICTED
    assert worse["fig-16-ours"].verdict is Verdict.REPRODUCED
    assert all(claim.rule for claim in better.values())
    assert better["fig-16-positive"].ours.endswith("at 1 servers")


def test_what_costs_more_than_another_lies_above_it_and_not_below_by_a_negative_share():
    assert below(Interval(24.8, 0.5), "LCS") == "24.8 ± 0.5 % below LCS"
    assert below(Interval(-143.9, 67.7), "Qual-Greedy") == "143.9 ± 67.7 % above Qual-Greedy"


def test_a_swept_count_is_a_whole_number_in_tables_and_words():
    assert (cell(whole(5.0)), cell(whole(0.25))) == ("5", "0.25")
    assert spoken(made_sweep(JTOM=5.0), "servers")[0].startswith("At 1 servers the least positive costs (s a task) are ")


def test_the_paper_s_weighted_costs_obey_the_law_of_process_time_less_a_twentieth_of_quality():
    assert max(abs(off) for off in off_the_law("table5")) < 0.2
    assert [m for m, off in zip(printed("table4")["m"], off_the_law("table4"), strict=True) if abs(off) <= WITHIN] == [10, 30, 40, 60]


def test_the_highest_rate_loads_the_paper_s_servers_as_stated():
    made = scenario_of(Run("stationary", ONTO, 0, 10.0, 19.0, PAPER_SERVERS, 1.0))
    assert made.num_edges == PAPER_SERVERS
    speed = sum(group.count * group.speed for group in made.edges)
    assert 19.0 * usual_task_s(made.model) / speed == pytest.approx(utilisation(19.0, PAPER_SERVERS)) == pytest.approx(0.8)


def test_a_broker_that_is_told_right_and_hears_everything_does_what_the_engine_does():
    run = Run("stationary", ONTO, 3, 20.0, 9.0, PAPER_SERVERS, 1.0)
    told, plain = error_of(Given(WRONG[0], list(FEEDBACK)[-1], run)), figures_of(run)
    assert {name: told[name] for name in plain} == plain


def test_a_wrong_broker_learns_what_one_in_an_open_loop_never_does():
    run = Run("stationary", ONTO, 0, 60.0, 15.0, PAPER_SERVERS, 1.0)
    open_loop, learning = (error_of(Given(WRONG[1], name, run)) for name in (next(iter(FEEDBACK)), list(FEEDBACK)[-1]))
    late = {name: sum(told["predicted_s"][10:]) / sum(told["observed_s"][10:]) for name, told in (("o", open_loop), ("l", learning))}
    assert late["o"] < 0.6
    assert late["l"] == pytest.approx(1.0, abs=0.15)


def test_edges_that_all_hold_one_merge_have_no_spread_and_serve_less_well():
    static, own = (spread_of(Run("stationary", arm, 0, 30.0)) for arm in (STATIC, ONTO))
    assert max(static["spread"]) == 0.0
    assert min(own["spread"]) > 0.5
    assert max(static["served"]) < min(own["served"])


@pytest.mark.parametrize(("last", "verdict"), [(1.0, Verdict.REPRODUCED), (0.8, Verdict.NOT_REPRODUCED)])
def test_always_means_every_type_at_every_instant_of_every_run(last, verdict):
    runs = [{"at": [0.0, 1.0], "spread": [0.5, 0.5], "served": [1.0, end]} for end in (1.0, 1.0, last)]
    assert always_served({("stationary", "JTOM"): runs}, "JTOM").verdict is verdict


def test_jtom_runs_as_the_paper_has_it():
    assert dict(JTOM.trigger_options) == {"mode": "paper", "interval_s": 20.0, "adjustment_s": 60.0, "threshold": 0.2}


@pytest.mark.parametrize(("value", "shown"), [(None, "-"), (12345.6, "12,346"), (0.5, "0.50"), (0.0123, "0.012"), (7, "7"), ("a", "a")])
def test_figures_on_the_page_have_about_three_digits(value, shown):
    assert cell(value) == shown


def test_two_experiments_from_the_command_to_one_page(tmp_path):
    for name in ("table1", "fig2"):
        told = CliRunner().invoke(app, ["reproduce", name, "--out", str(tmp_path), "--quick"])
        assert told.exit_code == 0, told.output
        assert "contradicted" in told.output
    for name in ("table1", "fig2"):
        made = json.loads((tmp_path / name / "result.json").read_text())
        assert all((tmp_path / name / f"{table['name']}.csv").stat().st_size for table in made["tables"])
        for plot in made["plots"]:
            assert (tmp_path / name / f"{plot['name']}.png").read_bytes().startswith(b"\x89PNG")
            assert "<svg" in (tmp_path / name / f"{plot['name']}.svg").read_text()
            assert (tmp_path / name / f"{plot['name']}-plot.csv").read_text().startswith("panel,series,x,y,ci95")
    page = (tmp_path / "index.html").read_text()
    assert page.count("<h2") == 3  # the second call keeps the first one's section
    assert not re.search(r"(src|href)=\"(?!#|data:)", page)
    assert "http" not in page
    assert "<script" not in page
