"""What runs in the stack's own process: an embedded stack whose merge events and activation reports are forwarded to the load generator."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from loadgen.child import Addresses, Outbox

if TYPE_CHECKING:
    from services.runtime.eventlog import Record

MERGE, ACTIVATIONS, PHASE = "merge", "activations", "phase"


@asynccontextmanager
async def serve_stack(settings: Mapping[str, Any], outbox: Outbox) -> AsyncIterator[Addresses]:
    """`settings` are those of `StackSettings` by name. Picklable (`functools.partial`); torch is imported in the child only."""
    from services.runtime import eventlog
    from services.runtime.logs import configure
    from services.stack import Stack, StackSettings

    configure("human", "WARNING")

    async def merge(record: Record) -> None:
        outbox.send(MERGE, record.value)

    async def activations(record: Record) -> None:
        outbox.send(ACTIVATIONS, record.value)

    async with (
        Stack(StackSettings(**settings), on_phase=lambda phase: outbox.send(PHASE, phase.encode())) as stack,
        stack.event_log.subscribe(eventlog.MERGE_EVENTS, "loadgen", merge),
        stack.event_log.subscribe(eventlog.ACTIVATIONS, "loadgen", activations),
    ):
        yield {"broker": stack.broker_address, "merger": stack.merger.address}
