"""Starting, running and ending a process: signals, the order of a drain, and loops that restart after a bug instead of ending silently."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

import grpc.aio

from services.runtime.clock import Clock
from services.runtime.net import Health

logger = logging.getLogger(__name__)

ServiceT = TypeVar("ServiceT")


async def serve_until_signalled(
    service: AbstractAsyncContextManager[ServiceT],
    *,
    on_ready: Callable[[ServiceT], None] | None = None,
    name: str = "service",
) -> None:
    """Enter the service, wait for SIGTERM or SIGINT, leave it. Leaving is the service's drain; a second signal ends the process at once."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def signalled(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)
        logger.info("%s: %s, draining; once more to end at once", name, number.name)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled, number)
    try:
        entering = asyncio.ensure_future(service.__aenter__())
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait({entering, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not entering.done():
            entering.cancel()
            await asyncio.gather(entering, return_exceptions=True)
            return
        stopping.cancel() if entering.exception() else None
        entered = entering.result()
        try:
            if on_ready is not None:
                on_ready(entered)
            await stopping
        finally:
            await service.__aexit__(None, None, None)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


def leave_to_live() -> None:
    """Take what start-up made (modules above all) out of the garbage collector's sight: looking at it again and again halts every task for
    tens of milliseconds. Only where start-up makes nothing large that is replaced later: of that, cycles would never be freed."""
    gc.collect()
    gc.freeze()


async def drain(server: grpc.aio.Server, health: Health, grace_s: float) -> None:
    """The first steps of a drain, in order: health says NOT_SERVING, no new calls, those in flight get `grace_s` to finish.

    What the service owns (event log, stores, channels) is closed after this.
    """
    await health.draining()
    await server.stop(grace_s)


async def supervise(name: str, loop_body: Callable[[], Awaitable[None]], clock: Clock, *, max_wait_s: float = 5.0) -> None:
    """Run `loop_body` for ever: a bug in it is logged with traceback and it is started again, after a wait that doubles up to `max_wait_s`.

    Run it as a task of the service's TaskGroup; cancelling ends it. A body that returns is done.
    """
    wait_s = 0.1
    while True:
        started_at_s = clock.now_s()
        try:
            await loop_body()
            return
        except Exception:  # the top of a supervised loop
            if clock.now_s() - started_at_s > 10 * max_wait_s:
                wait_s = 0.1
            logger.exception("%s failed; starting it again in %.1f s", name, wait_s)
        await clock.sleep(wait_s)
        wait_s = min(2 * wait_s, max_wait_s)
