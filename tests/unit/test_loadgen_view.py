"""Live views: what a terminal, a log and `--json` show of a running replay."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from loadgen.results import EdgeSample, Outcome
from loadgen.tally import Tally
from loadgen.view import LiveView, PlainView, QuietView, picture, view_for
from tests.fakes.runs import make_finished


def make_progress():
    tally = Tally(quality_scale=2.0)
    for n, outcome in enumerate((Outcome.COMPLETED, Outcome.COMPLETED, Outcome.FAILED, Outcome.REJECTED)):
        tally.add_sent(late=n == 0)
        tally.add(make_finished(f"t{n}", outcome=outcome, score=1.0 - n, intended_at_s=1.0, end_at_s=2.0, alpha=0.5))
    tally.add_sent(late=False)
    samples = tuple(EdgeSample(5.0, edge, "abcdef0123456", "updating", 3, 0.25, 2, 10, 20) for edge in ("large", "small"))
    return tally.progress("jtom", 5.0, 20.0, 40, {"facts": 0.75, "question": 0.25}, samples)


def make_console(width=120, *, terminal=False):
    written = io.StringIO()
    return Console(width=width, file=written, force_terminal=terminal), written


def shown(renderable):
    console, written = make_console(160)
    console.print(renderable)
    return written.getvalue()


def test_progress_counts_each_end_once_and_takes_means_over_completed_tasks_only():
    progress = make_progress()
    assert (progress.sent, progress.completed, progress.failed, progress.rejected, progress.in_flight) == (5, 2, 1, 1, 1)
    assert progress.quality == pytest.approx(0.5)
    assert progress.positive_cost == pytest.approx((1.0 + 2.0) / 2)
    assert progress.late_share == pytest.approx(0.2)
    assert [(row.sample.edge_id, row.tasks, row.quality) for row in progress.edges] == [("large", 0, None), ("small", 2, 0.5)]


def test_the_live_picture_shows_edges_versions_queue_wait_and_mix():
    text = shown(picture(make_progress()))
    for part in ("sent 5/40", "facts 75%", "abcdef01", "updating", "0.25 s", "positive cost 1.500", "20.0% sent late"):
        assert part in text
    assert "abcdef012" not in text


def test_80_columns_cut_nothing_off_the_live_picture():
    written = io.StringIO()
    console = Console(width=80, file=written, soft_wrap=True, force_terminal=True, color_system=None)
    view = LiveView(console)
    with view:
        view.show(replace(make_progress(), name="ONTO + portfolio (ours)", planned=1012, sent=1000, completed=990))
    for part in ("rejected 1", "positive cost 1.500 s", "quality 0.500", "20.0% sent late", "5 of 20 s"):
        assert part in written.getvalue()


def test_a_log_gets_one_plain_line():
    console, written = make_console(80)
    view = PlainView(console)
    with view:
        view.show(make_progress())
        view.say("small serves [v2]")
    lines = written.getvalue().splitlines()
    assert len(lines) == 2
    assert "completed 2 failed 1 rejected 1" in lines[0]
    assert lines[1] == "small serves [v2]"


def test_the_live_view_draws_on_a_terminal_and_stops_after_leaving():
    console, written = make_console(terminal=True)
    view = LiveView(console)
    with view:
        view.show(make_progress())
    drawn = written.getvalue()
    assert "predicted wait" in drawn
    view.show(make_progress())  # a late call from the drawing thread
    assert written.getvalue() == drawn


def test_the_view_fits_where_it_is_shown():
    terminal, pipe = (make_console(terminal=flag)[0] for flag in (True, False))
    assert isinstance(view_for(terminal, quiet=False), LiveView)
    assert isinstance(view_for(pipe, quiet=False), PlainView)
    assert type(view_for(terminal, quiet=True)) is QuietView
