"""Reproduction: verdicts follow their rules, experiments register by their file, a second run computes nothing, Ctrl-C loses nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from typer.testing import CliRunner

from loadgen import experiments
from loadgen.cli.main import app
from loadgen.reproduce import rules
from loadgen.reproduce.context import Context
from loadgen.reproduce.errors import ExperimentError
from loadgen.reproduce.plots import drawn
from loadgen.reproduce.store import Store, key_of, sources
from loadgen.reproduce.values import Line, Lines, Plot, Table, Verdict
from loadgen.simulator.figures import Interval


@dataclass(frozen=True)
class Given:
    value: int


def squared(given: Given) -> dict[str, int]:
    return {"squared": given.value**2}


def stopped_at_three(given: Given) -> int:
    if given.value == 3:
        raise KeyboardInterrupt
    return given.value


def context(store: Store, **options) -> Context:
    return Context(store, lambda done, total, left_s: None, **options)


@pytest.mark.parametrize(
    ("mean", "ci95", "verdict"),
    [
        (20.0, 3.0, Verdict.REPRODUCED),
        (20.0, 25.0, Verdict.NOT_REPRODUCED),
        (10.0, 3.0, Verdict.NOT_REPRODUCED),
        (-10.0, 3.0, Verdict.CONTRADICTED),
        (-1.0, 3.0, Verdict.NOT_REPRODUCED),
    ],
)
def test_a_claimed_gain_is_reproduced_only_in_full_and_beyond_noise(mean, ci95, verdict):
    assert rules.at_least(Interval(mean, ci95), 16.0).verdict is verdict


@pytest.mark.parametrize(("mean", "verdict"), [(1.0, Verdict.REPRODUCED), (0.1, Verdict.NOT_REPRODUCED), (-1.0, Verdict.CONTRADICTED)])
def test_a_claimed_sign_needs_its_interval_on_one_side(mean, verdict):
    assert rules.above_zero(Interval(mean, 0.5)).verdict is verdict


def test_claims_about_most_points_and_all_points_differ():
    assert rules.at_most_points(6, 10).verdict is Verdict.REPRODUCED
    assert rules.at_every_point(6, 10).verdict is Verdict.NOT_REPRODUCED
    assert rules.at_every_point(10, 10).verdict is Verdict.REPRODUCED
    assert rules.at_most_points(0, 10).verdict is Verdict.CONTRADICTED
    with pytest.raises(ValueError, match="points is 0"):
        rules.at_most_points(0, 0)


@pytest.mark.parametrize(("claimed", "verdict"), [(10.5, Verdict.REPRODUCED), (11.5, Verdict.NOT_REPRODUCED), (15.0, Verdict.CONTRADICTED)])
def test_a_claimed_value_is_contradicted_where_the_whole_interval_is_far_from_it(claimed, verdict):
    assert rules.near(Interval(10.0, 1.0), claimed, within=1.0).verdict is verdict


def test_a_claimed_best_value_must_not_be_beaten_and_must_beat_something_beyond_noise():
    better, worse, same = Interval(5.0, 1.0), Interval(-5.0, 1.0), Interval(0.5, 1.0)
    assert rules.best_of([worse, same]).verdict is Verdict.REPRODUCED
    assert rules.best_of([same]).verdict is Verdict.NOT_REPRODUCED
    assert rules.best_of([worse, better]).verdict is Verdict.CONTRADICTED


def test_every_experiment_is_known_by_its_file_and_an_unknown_one_is_named():
    assert "table1" in experiments.names()
    assert experiments.chosen(["all"]) == experiments.names()
    for name in experiments.names():
        assert experiments.experiment(name).title
    with pytest.raises(ExperimentError, match="did you mean table1"):
        experiments.chosen(["tabel1"])


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_second_run_computes_nothing_and_gives_the_same(tmp_path, jobs):
    given = [Given(2), Given(3), Given(2)]
    told = []
    with Store(tmp_path / "runs.jsonl") as store, context(store, jobs=jobs) as first:
        told.append(first.map(squared, given))
        assert first.computed == 2
    with Store(tmp_path / "runs.jsonl") as store, context(store) as second:
        told.append(second.map(squared, given))
        assert second.computed == 0
    assert told[0] == told[1] == [{"squared": 4}, {"squared": 9}, {"squared": 4}]


def test_another_byte_in_a_helper_that_is_imported_by_way_of_another_makes_another_key(tmp_path, monkeypatch):
    monkeypatch.setattr("loadgen.reproduce.store.ROOT", tmp_path)
    written = {
        "fig": "from some.place._near import double\n\ndef run(given):\n    return double(given)\n",
        "_near": "from some.place._far import TWO\n\ndef double(given):\n    return TWO * given\n",
        "_far": "TWO = 2\n",
        "_apart": "",
    }
    for name, source in written.items():
        (tmp_path / f"{name}.py").write_text(source)
    found: dict = {}
    exec(compile("def run(given):\n    return given\n", str(tmp_path / "fig.py"), "exec"), found)
    found["run"].__module__ = "fig"
    keys = []
    for name in ("fig", "_apart", "_far", "_near"):
        (tmp_path / f"{name}.py").write_text(written[name] + "# another\n")
        sources.cache_clear()
        keys.append(key_of(found["run"], 1))
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    sources.cache_clear()


def test_what_was_finished_before_ctrl_c_is_kept(tmp_path):
    given = [Given(n) for n in range(1, 5)]
    with Store(tmp_path / "runs.jsonl") as store, context(store) as run, pytest.raises(KeyboardInterrupt):
        run.map(stopped_at_three, given)
    with Store(tmp_path / "runs.jsonl") as store, context(store) as run:
        run.map(stopped_at_three, given[:2])
        assert run.computed == 0


def test_a_line_that_was_cut_off_is_dropped_and_the_file_goes_on_whole(tmp_path):
    path = tmp_path / "runs.jsonl"
    with Store(path) as store:
        store.put("one", {}, 1)
    with path.open("ab") as file:
        file.write(b'{"key": "two", "resu')
    with Store(path) as store:
        assert "one" in store
        assert "two" not in store
        store.put("three", {}, 3)
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["one", "three"]


def test_a_table_whose_rows_do_not_fit_its_columns_is_refused():
    with pytest.raises(ValueError, match="table t: every row needs 2 cells"):
        Table("t", "", ("a", "b"), (("x",),))


def test_the_command_writes_data_and_a_second_call_reads_it_back(tmp_path):
    arguments = ["reproduce", "table1", "--out", str(tmp_path), "--quick", "--json"]
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    made = json.loads(first.stdout)["experiments"][0]
    assert json.loads((tmp_path / "table1" / "result.json").read_text()) == made
    csv = (tmp_path / "table1" / "paper.csv").read_text().splitlines()
    assert csv[1] == "WinoGrande,0.696,0.436,0.554,0.504"
    stamp = (tmp_path / "table1" / "result.json").stat().st_mtime_ns
    assert CliRunner().invoke(app, arguments).stdout == first.stdout
    assert (tmp_path / "table1" / "result.json").stat().st_mtime_ns == stamp


def test_a_line_without_points_is_drawn_as_none():
    """As of a policy that made no update."""
    panel = Lines("costs", "time", "cost", (Line("none", (), ()), Line("one", (1.0, 2.0), (3.0, 4.0))))
    assert drawn(Plot("costs", "costs", "a caption", (panel,)))
