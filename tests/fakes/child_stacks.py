"""Stacks that tests run in a process of their own: importable by name there, with a fake broker instead of services."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from loadgen.child import Addresses, Outbox
from tests.fakes.broker import Answer, FakeBroker, serving


@asynccontextmanager
async def answering(outbox: Outbox) -> AsyncIterator[Addresses]:
    async with serving(FakeBroker(lambda request: Answer(text="yes it is"))) as address:
        outbox.send("merge", b"an\nevent")
        yield {"broker": address}


@asynccontextmanager
async def broken(outbox: Outbox) -> AsyncIterator[Addresses]:
    raise ValueError("model: no such directory")
    yield {}


@asynccontextmanager
async def vanishing(outbox: Outbox) -> AsyncIterator[Addresses]:
    raise SystemExit(3)
    yield {}
