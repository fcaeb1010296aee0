"""The report: figures from records, which drift an update followed, and a page that points nowhere outside itself."""

import io
import json
import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from rich.console import Console

from loadgen.lateness import late_sends
from loadgen.report.document import document
from loadgen.report.drifts import followed, unanswered
from loadgen.report.numbers import quantiles, run_numbers
from loadgen.report.terminal import print_summary
from loadgen.report.verdicts import verdicts
from loadgen.report.words import size
from loadgen.report.write import write_report
from loadgen.results import Outcome
from loadgen.updates import UpdateFeed
from moedge.v1 import events_pb2, worker_pb2
from services.runtime.codec import duration
from tests.fakes.runs import TYPES, make_finished, make_report, make_run, make_update

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("report")
    return directory, write_report(directory, make_report(), NOW)


def test_the_document_has_the_keys_that_the_demonstration_is_judged_by(written):
    directory, _ = written
    data = json.loads((directory / "report.json").read_text())
    assert data["schema_version"] == 1
    assert {"cpu", "cores", "python", "torch", "git_commit"} <= data["host"].keys()
    for name in ("jtom", "static"):
        run = data["runs"][name]
        assert {"sent", "completed", "failed", "rejected"} <= run["tasks"].keys()
        assert {"expected", "realised"} == run["total_quality"].keys()
        assert {"count", "stall_p99_s", "bytes_fetched", "bytes_full"} <= run["swap"].keys()
        assert {"p50", "p95", "p99"} == run["latency_s"].keys() == run["latency_from_send_s"].keys()
        assert {"p50", "p95"} <= run["wait_prediction_error_s"].keys()
        for key in ("positive_cost", "weighted_cost", "table_cost", "process_time_s"):
            assert isinstance(run[key], float)
    assert data["runs"]["jtom"]["updates"] == 5
    assert data["runs"]["static"]["updates"] == 0
    assert data["unmerged_quantised"]["edges"]["small"]["bits"] == 2
    assert [row["quality_scale"] for row in data["quality_scale_sweep"]][0::6] == [0.1, 10.0]


def test_the_page_is_self_contained(written):
    directory, _ = written
    html = (directory / "report.html").read_text()
    assert "http://" not in html
    assert "https://" not in html
    assert not re.search(r"<(script|link|iframe|img)\b", html)
    assert not re.search(r'(?:href|src)="(?!#|data:)', html)
    assert html.count("<svg") == 8
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_every_plot_lies_beside_the_page_as_png(written):
    directory, _ = written
    names = {path.stem for path in directory.glob("*.png")}
    assert {"cost_over_time", "quality_over_time", "quality_per_task_and_edge", "wait_prediction", "activation_heat_maps"} <= names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in directory.glob("*.png"))


def test_names_from_outside_are_escaped_on_the_page(tmp_path):
    report = make_report()
    hostile = replace(report.runs["jtom"], finished=(make_finished(edge_id="<script>alert(1)</script>"),), num_planned=1)
    write_report(tmp_path, replace(report, runs={"replay": hostile}, unmerged=(), heat_maps=(), title="<b>"), NOW)
    assert not re.search(r"<script|<b>alert|<title><b>", (tmp_path / "report.html").read_text())


def test_a_run_in_which_nothing_completed_still_gives_a_report(tmp_path):
    lost = make_finished(outcome=Outcome.FAILED, status="UNAVAILABLE", reason="TRANSPORT", score=None, edge_id="")
    run = replace(make_run(), finished=(lost,), updates=(), num_planned=1)
    data = write_report(tmp_path, replace(make_report(), runs={"jtom": run, "static": run}), NOW)
    assert data["runs"]["jtom"]["positive_cost"] is None
    assert data["runs"]["jtom"]["latency_s"] == {"p50": None, "p95": None, "p99": None}
    assert data["runs"]["jtom"]["tasks"]["not_completed_by_status"] == {"UNAVAILABLE TRANSPORT": 1}
    assert not all(verdict["ok"] for verdict in data["verdicts"])


def test_figures_agree_with_a_count_by_hand():
    fast = make_finished("a", alpha=1.0, intended_at_s=0.0, sent_at_s=0.0, end_at_s=1.0, score=1.0, predicted_quality=0.5)
    slow = make_finished("b", alpha=0.5, intended_at_s=1.0, sent_at_s=1.5, end_at_s=4.0, score=0.0, predicted_quality=0.5)
    lost = make_finished("c", outcome=Outcome.FAILED, end_at_s=60.0, score=None)
    update = make_update()
    assert update.swap is not None
    update = replace(update, swap=replace(update.swap, downtime_s=0.25))
    run = replace(make_run(), finished=(fast, slow, lost), updates=(update,), quality_scale=2.0, num_planned=3)
    numbers = run_numbers(run)
    assert numbers["positive_cost"] == pytest.approx(((1.0 + 0.0) + (3.0 + 0.5 * 2.0)) / 2)
    assert numbers["weighted_cost"] == pytest.approx(4.0 - 1.0 * 2.0 * 1.0)
    assert numbers["process_time_s"] == pytest.approx(4.0 + 0.25)
    assert numbers["table_cost"] == pytest.approx(4.25 - 0.05 * 1.0)
    assert numbers["total_quality"] == {"expected": 1.0, "realised": 1.0}
    assert numbers["latency_s"]["p50"] == pytest.approx(2.0)
    assert numbers["latency_from_send_s"]["p50"] == pytest.approx(1.75)
    assert numbers["positive_cost_by_quality_scale"]["10"] == pytest.approx((1.0 + 3.0 + 5.0) / 2)
    assert numbers["late_sends"]["ok"] is False


def test_late_sends_turn_the_verdict_red_above_one_percent():
    assert late_sends([0.001] * 99 + [0.011]).ok
    late = late_sends([0.001] * 98 + [0.011, 0.3])
    assert not late.ok
    assert sum(late.counts) == 100
    assert late.counts[-1] == 1
    assert late.worst_s == 0.3
    assert late_sends([]).ok


def test_quantiles_of_nothing_are_none():
    assert quantiles([], (0.5, 0.99)) == {"p50": None, "p99": None}


def test_an_update_follows_the_last_drift_before_it_was_asked_for():
    drifts = (25.0, 50.0)
    updates = [
        make_update("small", 10.0),
        make_update("small", 30.0, requested_at_s=27.0),
        make_update("small", 40.0, requested_at_s=38.0),
        make_update("large", 52.0, requested_at_s=48.0),
        make_update("large", 55.0, requested_at_s=54.0),
        make_update("large", 56.0, ok=False),
    ]
    entries = followed(updates, drifts)
    assert [(e.drift_at_s, e.without_reason) for e in entries] == [(None, True), (25.0, False), (25.0, True), (25.0, False), (50.0, False)]
    assert unanswered(entries[:4], drifts) == (50.0,)


def test_verdicts_name_what_is_missing():
    runs = document(make_report(), NOW)["runs"]
    assert all(verdict.ok for verdict in verdicts(runs))
    worse = {"jtom": runs["static"], "static": runs["jtom"]}
    failed = {verdict.name for verdict in verdicts(worse) if not verdict.ok}
    assert "realised quality at least 15 % higher with updates" in failed
    assert "at least one update after each drift" in failed


def test_an_update_after_each_drift_is_asked_of_the_trigger_that_follows_history():
    runs = document(make_report(), NOW)["runs"]
    without = {**runs["jtom"], "drifts_without_update_at_s": [25.0]}
    told = {verdict.name: verdict.ok for verdict in verdicts({"portfolio": without, **runs})}
    assert told["at least one update after each drift"]
    assert not {v.name: v.ok for v in verdicts({**runs, "jtom": without})}["at least one update after each drift"]


def test_the_terminal_summary_shows_both_runs_and_each_task_type():
    console = Console(width=180, record=True, force_terminal=False, file=open("/dev/null", "w"))  # noqa: SIM115
    print_summary(console, document(make_report(), NOW))
    console.file.close()
    text = console.export_text()
    assert all(task_type in text for task_type in TYPES)
    assert "positive cost" in text
    assert "with updates: realised quality +" in text


def test_the_terminal_summary_breaks_no_figure_of_a_run_in_80_columns():
    console = Console(width=80, record=True, force_terminal=False, file=io.StringIO())
    data = document(make_report(), NOW)
    print_summary(console, data)
    rows = [line.rstrip() for line in console.export_text().splitlines()]
    rows = rows[1 : rows.index("")]
    assert not [row for row in rows if row.startswith("   ")], "the rest of a broken cell"
    (shipped,) = [line for line in rows if line.startswith("  of full reloads' bytes")]
    wholes = [size(run["swap"]["bytes_full"]) for run in data["runs"].values()]
    assert shipped.split("bytes")[1].split() == " ".join(wholes).split()


def test_what_an_update_shipped_is_unknown_where_nobody_reported_it():
    told, untold = make_update(), replace(make_update(), swap=None)
    assert told.swap is not None
    assert run_numbers(replace(make_run(), updates=(told, told)))["swap"]["bytes_full"] == 2 * told.swap.bytes_full
    assert run_numbers(replace(make_run(), updates=()))["swap"]["bytes_fetched"] == 0
    swap = run_numbers(replace(make_run(), updates=(told, untold)))["swap"]
    assert [swap[key] for key in ("bytes_fetched", "bytes_full", "downtime_s", "in_flight_tasks")] == 4 * [None]
    report = replace(make_report(), runs={"replay": replace(make_run(), updates=(untold,))})
    console = Console(width=80, record=True, force_terminal=False, file=io.StringIO())
    print_summary(console, document(report, NOW))
    (fetched,) = [line for line in console.export_text().splitlines() if line.startswith("bytes fetched by updates")]
    assert fetched.split()[-1] == size(None)


def test_merge_events_become_one_update_with_its_swap_report():
    kinds = events_pb2.MergeEventKind
    feed = UpdateFeed()
    early = events_pb2.MergeEvent(event_id="0", edge_id="small", kind=kinds.MERGE_EVENT_KIND_SWAPPED, version="v0")
    feed.put(early, 99.0)
    feed.begin(100.0)
    asked = events_pb2.MergeEvent(
        event_id="1", edge_id="small", kind=kinds.MERGE_EVENT_KIND_REQUESTED, reason="shift", activation_shift=0.4, mix={"facts": 1.0}
    )
    swap = worker_pb2.SwapReport(stall=duration(0.02), bytes_fetched=10, bytes_full=40, to_version="v2")
    done = events_pb2.MergeEvent(event_id="3", edge_id="small", kind=kinds.MERGE_EVENT_KIND_SWAPPED, version="v2", swap=swap)
    built = events_pb2.MergeEvent(event_id="2", edge_id="small", kind=kinds.MERGE_EVENT_KIND_BUILT, version="v2", build=duration(1.5))
    failed = events_pb2.MergeEvent(event_id="4", edge_id="large", kind=kinds.MERGE_EVENT_KIND_FAILED, reason="blob is corrupt")
    for at_s, event in ((110.0, asked), (112.0, built), (113.0, done), (113.5, done), (114.0, failed)):
        feed.put(event, at_s)
    good, bad = feed.updates
    assert (good.requested_at_s, good.at_s, good.version, good.reason, good.build_s) == (10.0, 13.0, "v2", "shift", 1.5)
    assert good.swap is not None
    assert good.swap.stall_s == pytest.approx(0.02)
    assert good.swap.bytes_fetched == 10
    assert (bad.ok, bad.edge_id, bad.reason) == (False, "large", "blob is corrupt")
