"""Ids follow the work: into logs, event headers and outgoing calls. Logs escape what came from outside."""

import asyncio
import io
import json
import logging

import pytest

from services.runtime import logs
from services.runtime.scope import TraceContext, current, event_headers, outgoing, read_traceparent, within

TRACE = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
HEADER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_traceparent_is_read_and_written_as_w3c_has_it():
    assert read_traceparent(HEADER) == TRACE
    assert TRACE.header == HEADER


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        HEADER + "-more",
        "x" * 100_000,
    ],
)
def test_a_bad_traceparent_is_as_good_as_none(header):
    assert read_traceparent(header) is None


def test_a_later_version_of_traceparent_may_be_longer():
    assert read_traceparent("01" + HEADER[2:] + "-more") == TRACE


async def test_a_scope_narrows_follows_child_tasks_and_ends():
    seen = []

    async def child():
        seen.append(current())

    with within(request_id="r1", trace=TRACE):
        with within(task_id="t1"):
            await asyncio.create_task(child())
        seen.append(current())
    assert [(scope.request_id, scope.task_id, scope.trace) for scope in seen] == [("r1", "t1", TRACE), ("r1", "", TRACE)]
    assert current().fields() == {}


def test_calls_and_events_made_in_a_scope_carry_its_trace():
    with within(request_id="r1", trace=TRACE):
        assert outgoing() == (("x-request-id", "r1"), ("traceparent", HEADER))
        assert event_headers() == {"traceparent": HEADER}
    assert outgoing() == ()
    assert event_headers() == {}


@pytest.fixture
def written():
    """Configures JSON logs into a buffer, and puts the root logger back."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_lines_carry_the_ids_of_their_scope_and_the_calls_own_win(written):
    logs.configure("json", "INFO", stream=written)
    logger = logging.getLogger("test")
    with within(request_id="r1", task_id="t1", trace=TRACE):
        logger.info("inside")
        logger.info("of another task", extra={"task_id": "t2", "edge_id": "west"})
    logger.info("outside")
    inside, other, outside = map(json.loads, written.getvalue().splitlines())
    ids = {"task_id": "t1", "request_id": "r1", "trace_id": TRACE.trace_id, "span_id": TRACE.span_id}
    assert inside.items() >= ids.items()
    assert (other["task_id"], other["edge_id"], other["request_id"]) == ("t2", "west", "r1")
    assert not outside.keys() & ids.keys()


@pytest.mark.parametrize("log_format", ["json", "human"])
def test_control_characters_from_outside_never_reach_the_log_raw(written, log_format):
    nasty = "".join(map(chr, [*range(32), 0x7F, 0x85, 0x9B, 0x2028])) + "\x1b[2J"
    logs.configure(log_format, "INFO", stream=written)
    try:
        raise ValueError(nasty)
    except ValueError:
        logging.getLogger("test").exception("refused %s", nasty, extra={"edge_id": nasty})
    text = written.getvalue()
    assert "refused" in text
    assert set(text) & (set(nasty) - set("[2J\n")) == set()
    if log_format == "json":
        assert json.loads(text)["edge_id"] == nasty
