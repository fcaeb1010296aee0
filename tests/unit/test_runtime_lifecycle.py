"""Signals, supervised loops and log lines."""

import asyncio
import io
import json
import logging
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest

from services.runtime import logs
from services.runtime.clock import VirtualClock
from services.runtime.lifecycle import serve_until_signalled, supervise


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_leaves_the_service_in_order(number):
    steps = []

    @asynccontextmanager
    async def service():
        steps.append("entered")
        try:
            yield "address"
        finally:
            steps.append("left")

    def ready(address):
        steps.append(address)
        os.kill(os.getpid(), number)

    await serve_until_signalled(service(), on_ready=ready)
    assert steps == ["entered", "address", "left"]


async def test_a_signal_during_start_ends_the_start():
    loop = asyncio.get_running_loop()
    loop.call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)

    @asynccontextmanager
    async def never_ready():
        await asyncio.Event().wait()
        yield

    async with asyncio.timeout(5):
        await serve_until_signalled(never_ready())


async def test_a_service_that_cannot_start_says_why():
    @asynccontextmanager
    async def broken():
        raise OSError("port taken")
        yield

    with pytest.raises(OSError, match="port taken"):
        await serve_until_signalled(broken())


STUCK = """
import asyncio, contextlib
from services.runtime.lifecycle import serve_until_signalled

@contextlib.asynccontextmanager
async def stuck():
    yield
    print("draining", flush=True)
    await asyncio.Event().wait()

asyncio.run(serve_until_signalled(stuck(), on_ready=lambda _: print("ready", flush=True)))
"""


def test_a_second_signal_ends_a_stuck_drain_at_once():
    process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "draining\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM


async def test_a_supervised_loop_starts_again_after_a_bug_and_ends_when_it_returns(caplog):
    clock = VirtualClock()
    runs = []

    async def body():
        runs.append(clock.now_s())
        if len(runs) < 3:
            raise KeyError("bug")

    task = asyncio.create_task(supervise("loop", body, clock))
    await clock.advance(10.0)
    await task
    assert len(runs) == 3
    assert caplog.text.count("loop failed; starting it again") == 2


async def test_cancelling_ends_a_supervised_loop():
    async def wait_for_ever():
        await asyncio.Event().wait()

    task = asyncio.create_task(supervise("loop", wait_for_ever, VirtualClock()))
    await asyncio.sleep(0)  # noqa: TID251
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.fixture
def root_logger():
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_lines_carry_the_task_id_and_stay_one_line(root_logger):
    stream = io.StringIO()
    logs.configure("json", "INFO", stream=stream)
    logging.getLogger("moedge.test").info("done\nwith %s", "it", extra={"task_id": "t1"})
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1
    line = json.loads(lines[0])
    assert (line["message"], line["task_id"], line["level"]) == ("done\nwith it", "t1", "INFO")


def test_json_lines_carry_the_traceback(root_logger):
    stream = io.StringIO()
    logs.configure("json", "INFO", stream=stream)
    try:
        raise KeyError("x")
    except KeyError:
        logging.getLogger("moedge.test").exception("failed")
    assert "KeyError" in json.loads(stream.getvalue())["traceback"]


def test_human_lines_show_control_characters_instead_of_sending_them(root_logger):
    stream = io.StringIO()
    logs.configure("human", "INFO", stream=stream)
    logging.getLogger("moedge.test").info("user said \x1b[2J")
    assert "\x1b" not in stream.getvalue()
    assert "\\x1b" in stream.getvalue()
