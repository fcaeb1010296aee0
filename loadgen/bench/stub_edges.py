"""Edges for benchmarks of the broker: real servers that speak as workers do and stand in the registry as they do, without a model.

Each answers every task at once with tokens at a fixed pace, however many it has; what is measured with them is never the edge.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from loadgen.child import Addresses, Outbox
from moedge.v1 import inference_pb2, inference_pb2_grpc, worker_pb2, worker_pb2_grpc
from services.core.offload.values import Link, StepTimes
from services.runtime.clock import Clock, SystemClock
from services.runtime.codec import duration, link_to_proto, step_times_to_proto
from services.runtime.net import bind, server
from services.runtime.store import EdgeRegistry, open_redis

if TYPE_CHECKING:
    import redis.asyncio

RENEWED_S = 0.5  # as workers renew their entries
VERSION = "bench"
QUALITY = {"alternative": 0.8, "facts": 0.6, "pronoun": 0.7, "question": 0.5, "sentence": 0.9}
MAX_BATCH, MAX_QUEUE = 64, 64
REGION = "home"
INSTANT = Link(latency_s=0.0, uplink_bytes_per_s=0.0, downlink_bytes_per_s=0.0)


@dataclass(frozen=True, slots=True)
class Pace:
    num_tokens: int
    token_s: float  # before each token


class StubEdge(inference_pb2_grpc.InferenceServiceServicer, worker_pb2_grpc.WorkerServiceServicer):
    """`async with StubEdge(...)`: serves and renews its registry entry; leaving removes the entry."""

    def __init__(self, edge_id: str, pace: Pace, redis: redis.asyncio.Redis, clock: Clock) -> None:
        self._pace = pace
        self._clock = clock
        self._registry = EdgeRegistry(redis, clock)
        self._tokens = [inference_pb2.Token(token_id=n, text=f"word{n} ") for n in range(pace.num_tokens)]
        self._text = "".join(token.text for token in self._tokens)
        self._num_by_broker: Counter[str] = Counter()
        self._entry = worker_pb2.EdgeEntry(
            edge_id=edge_id,
            base_model="stub",
            version=VERSION,
            state=worker_pb2.EDGE_STATE_READY,
            quality=QUALITY,
            links={REGION: link_to_proto(INSTANT)},
            step_times=step_times_to_proto(StepTimes(pace.token_s, 0.0, 0.0, 0.0)),
            max_batch=MAX_BATCH,
            max_queue=MAX_QUEUE,
            epoch=uuid.uuid4().hex,
        )
        self._server = server()
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self, self._server)
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(self, self._server)

    @property
    def address(self) -> str:
        return self._entry.address

    async def __aenter__(self) -> Self:
        self._entry.address = bind(self._server, "127.0.0.1", 0)
        await self._server.start()
        await self._announce()
        self._presence = asyncio.create_task(self._renew())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._presence.cancel()
        with suppress(asyncio.CancelledError):
            await self._presence
        await self._registry.remove(self._entry.edge_id)
        await self._server.stop(None)

    async def Generate(self, request: inference_pb2.GenerateRequest, context: Any) -> None:  # type: ignore[override]  # writes itself
        dispatch = request.dispatch
        self._num_by_broker[dispatch.broker_id] += 1
        try:
            await self._answer(dispatch.task_id, len(request.prompt.split()), context)
        finally:
            self._num_by_broker[dispatch.broker_id] -= 1

    async def GetStatus(self, request: worker_pb2.GetStatusRequest, context: Any) -> worker_pb2.GetStatusResponse:
        here = +self._num_by_broker
        return worker_pb2.GetStatusResponse(entry=self._entry, running_tasks=here.total(), tasks_by_broker=dict(here))

    async def _answer(self, task_id: str, prompt_tokens: int, context: Any) -> None:
        edge_id, began_at_s = self._entry.edge_id, self._clock.now_s()
        accepted = inference_pb2.Accepted(task_id=task_id, edge_id=edge_id, version=VERSION)
        await context.write(inference_pb2.GenerateResponse(accepted=accepted))
        for token in self._tokens:
            await self._clock.sleep(self._pace.token_s)
            await context.write(inference_pb2.GenerateResponse(token=token))
        summary = inference_pb2.Summary(
            task_id=task_id,
            edge_id=edge_id,
            version=VERSION,
            text=self._text,
            finish_reason=inference_pb2.FINISH_REASON_LENGTH,
            prompt_tokens=prompt_tokens,
            output_tokens=len(self._tokens),
            timings=inference_pb2.Timings(queue_wait=duration(0.0), inference=duration(self._clock.now_s() - began_at_s)),
        )
        await context.write(inference_pb2.GenerateResponse(summary=summary))

    async def _announce(self) -> None:
        self._entry.sequence += 1
        await self._registry.put(self._entry)

    async def _renew(self) -> None:
        while True:
            await self._clock.sleep(RENEWED_S)
            await self._announce()


@asynccontextmanager
async def stub_edges(num_edges: int, pace: Pace, redis: redis.asyncio.Redis, clock: Clock) -> AsyncIterator[Sequence[str]]:
    """That many edges in this process; yields their addresses."""
    async with AsyncExitStack() as stack:
        # What only operators and controllers ask of a worker is left unimplemented.
        edges = [StubEdge(f"bench-{n:04d}", pace, redis, clock) for n in range(num_edges)]  # type: ignore[abstract]
        yield [(await stack.enter_async_context(edge)).address for edge in edges]


@asynccontextmanager
async def serve_stub_edges(num_edges: int, pace: Pace, redis_url: str, outbox: Outbox) -> AsyncIterator[Addresses]:
    """For `ChildStack`: the edges in a process of their own."""
    clock, redis = SystemClock(), open_redis(redis_url)
    try:
        async with stub_edges(num_edges, pace, redis, clock) as addresses:
            yield {f"{n:04d}": address for n, address in enumerate(addresses)}
    finally:
        await redis.aclose()
