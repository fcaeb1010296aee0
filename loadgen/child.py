"""A stack in a process of its own, so that its computing cannot delay the load generator's sends. Starts it, hears it, ends it.

The child sends framed bytes through a pipe: that it is ready, that it failed, and events. It ends when the pipe closes, so a load
generator that dies takes its stack with it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

logger = logging.getLogger(__name__)

READY, FAILED = "ready", "failed"
JOIN_S = 15.0
NICENESS = 5  # on a crowded machine sends come first: a late send measures the wrong thing

Addresses = Mapping[str, str]
Hear = Callable[[str, bytes], None]


class ChildError(Exception):
    """The stack's process did not come up; the message is the stack's own."""


class Outbox:
    """The child's end of the pipe: one kind and a body a message."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def send(self, kind: str, body: bytes) -> None:
        try:
            self._pipe.send_bytes(kind.encode() + b"\n" + body)
        except OSError:
            return  # nobody listens any more: the closed pipe also ends this process


Serve = Callable[[Outbox], AbstractAsyncContextManager[Addresses]]


class ChildStack:
    """`async with ChildStack(serve, hear) as addresses`. `serve` is picklable; it runs in the child and yields the addresses to use."""

    def __init__(self, serve: Serve, hear: Hear, ready_within_s: float = 300.0, niceness: int = NICENESS) -> None:
        self._serve = serve
        self._hear = hear
        self._ready_within_s = ready_within_s
        context = multiprocessing.get_context("spawn")
        self._pipe, self._theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(serve, self._theirs, niceness), daemon=True)
        self._ready: asyncio.Future[Addresses] | None = None

    async def __aenter__(self) -> Addresses:
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        self._process.start()
        self._theirs.close()
        loop.add_reader(self._pipe.fileno(), self._read)
        try:
            async with asyncio.timeout(self._ready_within_s):
                return await self._ready
        except TimeoutError:
            await self._end()
            raise ChildError(f"the stack was not ready within {self._ready_within_s:.0f} s") from None
        except BaseException:
            await self._end()
            raise

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._end()

    def _read(self) -> None:
        """Everything that the child has written so far."""
        assert self._ready is not None
        try:
            while self._pipe.poll():
                kind, _, body = self._pipe.recv_bytes().partition(b"\n")
                self._take(kind.decode(), body)
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            if not self._ready.done():
                self._ready.set_exception(ChildError("the stack's process ended before it was ready; its log says why"))

    def _take(self, kind: str, body: bytes) -> None:
        assert self._ready is not None
        if kind == READY and not self._ready.done():
            self._ready.set_result(json.loads(body))
        elif kind == FAILED and not self._ready.done():
            self._ready.set_exception(ChildError(body.decode()))
        elif kind == FAILED:
            logger.error("the stack failed: %s", body.decode())
        else:
            self._hear(kind, body)

    async def _end(self) -> None:
        """Close the pipe, which asks the child to drain; insist when it does not."""
        if not self._pipe.closed:
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            self._pipe.close()
        await asyncio.to_thread(self._process.join, JOIN_S)
        if self._process.is_alive():
            self._process.terminate()
            await asyncio.to_thread(self._process.join, JOIN_S)
        if self._process.is_alive():
            self._process.kill()
            await asyncio.to_thread(self._process.join)
        self._process.close()


def _run(serve: Serve, pipe: Connection, niceness: int) -> None:
    """The child's main: Ctrl-C reaches the whole group and is the parent's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(niceness)
    asyncio.run(_serve(serve, pipe))


async def _serve(serve: Serve, pipe: Connection) -> None:
    outbox, stop = Outbox(pipe), asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), stop.set)
    try:
        running: Any = serve(outbox)
        async with running as addresses:
            outbox.send(READY, json.dumps(dict(addresses)).encode())
            await stop.wait()
    except Exception as error:  # the top of the process: the parent says it to the user
        logger.debug("the stack failed", exc_info=True)
        outbox.send(FAILED, (str(error) or type(error).__name__).encode())
    finally:
        asyncio.get_running_loop().remove_reader(pipe.fileno())
