"""`moedge bench all`: each benchmark in a process of its own, what came out kept, what did not run told."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from loadgen.cli.bench.everything import BENCHMARKS, collected
from loadgen.cli.bench.worker import TARGET_ALONE
from loadgen.cli.main import app

NOWHERE = "redis://127.0.0.1:1"
TINY = [
    "--tasks",
    "6",
    "--concurrent",
    "2",
    "--rounds",
    "1",
    "--checked",
    "2",
    "--blocks",
    "2",
    "--width",
    "64",
    "--experts",
    "4",
    "--vocabulary",
    "200",
]


def test_figures_are_kept_and_a_benchmark_that_cannot_run_leaves_the_others_theirs(tmp_path):
    figures, failed = collected({"broker": ("--redis", NOWHERE), "worker": TINY}, tmp_path)
    assert set(figures) == {"worker"}
    assert set(failed) == {"broker"}
    assert f"Redis at {NOWHERE} does not answer" in failed["broker"]
    assert json.loads((tmp_path / "worker.json").read_text()) == figures["worker"]
    told = {headline.what: headline for headline in BENCHMARKS["worker"](figures["worker"])}
    alone = told["x one at a time"]
    assert (alone.value, alone.target) == (figures["worker"]["ratio_one_at_a_time"], TARGET_ALONE)
    assert alone.is_met == (alone.value >= TARGET_ALONE)
    assert told["tasks of other tokens"].is_met


def test_the_command_says_what_did_not_run_and_fails(tmp_path):
    ran = CliRunner().invoke(app, ["bench", "all", "--only", "broker", "--redis", NOWHERE, "--out", str(tmp_path)])
    assert ran.exit_code == 1
    assert f"broker did not run: Redis at {NOWHERE} does not answer" in ran.stdout
    ran = CliRunner().invoke(app, ["bench", "all", "--only", "broker", "--redis", NOWHERE, "--out", str(tmp_path), "--json"])
    assert set(json.loads(ran.stdout)["failed"]) == {"broker"}


def test_an_unknown_benchmark_is_named():
    ran = CliRunner().invoke(app, ["bench", "all", "--only", "wroker"])
    assert ran.exit_code == 2
    assert "only: 'wroker' is unknown; did you mean worker?" in ran.output


@pytest.mark.parametrize(
    ("name", "figures", "rows"),
    [
        ("simulator", {"tasks_per_s": 28_100.0, "compiled_tasks_per_s": 56_900.0}, [("28,100", "missed"), ("56,900", "met")]),
        (
            "swap",
            {"failed": 0, "sizes": {"0.25": {"stall_p99_s": 0.0731}, "0.6": {"stall_p99_s": 0.134}}},
            [("0", "met"), ("73", "met"), ("134", "missed")],
        ),
        (
            "broker",
            {"added_p50_s": 0.0006, "added_p99_s": 0.0142, "decision_s": {"10": 3e-5, "100": 3.5e-5}},
            [("0.60", "met"), ("14.20", "missed"), ("35", "met")],
        ),
        (
            "merge",
            {"remerge_s": 2.62, "ratio_align_again": 623.0, "ratio_same_alignment": 2.9, "max_abs_diff": 2.2e-8},
            [("2.6", "met"), ("623.0", "met"), ("2.9", "missed"), ("2.2e-08", "met")],
        ),
        ("fitted", {}, []),
    ],
)
def test_figures_stand_beside_what_was_aimed_at(name, figures, rows):
    assert [(headline.row[1], headline.row[3]) for headline in BENCHMARKS[name](figures)] == rows
