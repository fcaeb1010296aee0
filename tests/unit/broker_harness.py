"""What broker tests share: a broker over fakeredis and an in-process log, fake workers, and a user who keeps all that was streamed."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import redis.asyncio

from moedge.v1 import broker_pb2_grpc, events_pb2, inference_pb2, inference_pb2_grpc
from services.broker.service import Broker
from services.broker.settings import BrokerSettings
from services.core.offload.values import EdgeState
from services.runtime.clock import SystemClock
from services.runtime.eventlog import TASK_EVENTS
from services.runtime.eventlog_memory import MemoryEventLog
from services.runtime.events import TERMINAL_KINDS, kind_word, read_task
from services.runtime.net import channel, open_stream
from services.runtime.status import RpcFailure, failure_of
from services.runtime.store import open_redis
from tests.fakes.waiting import until
from tests.fakes.worker import FakeWorker

FAST = {"poll_s": 0.02, "publish_s": 0.02, "heartbeat_s": 0.1, "seed": 1, "ties": "lowest-id"}


@dataclasses.dataclass(slots=True)
class Answer:
    """One call as the user saw it."""

    responses: list[inference_pb2.GenerateResponse] = dataclasses.field(default_factory=list)
    failure: RpcFailure | None = None

    def of(self, event: str) -> list[Any]:
        return [getattr(r, event) for r in self.responses if r.WhichOneof("event") == event]

    @property
    def kinds(self) -> list[str]:
        return [str(r.WhichOneof("event")) for r in self.responses]

    @property
    def summary(self) -> inference_pb2.Summary:
        assert self.failure is None, self.failure
        summary: inference_pb2.Summary = self.of("summary")[0]
        return summary

    @property
    def text(self) -> str:
        """As a user puts it together: what comes before a restart is discarded."""
        texts: list[str] = []
        for response in self.responses:
            if response.HasField("restarted"):
                texts.clear()
            elif response.HasField("token"):
                texts.append(response.token.text)
        return "".join(texts)


@dataclasses.dataclass(slots=True)
class House:
    broker: Broker
    log: MemoryEventLog
    redis: redis.asyncio.Redis
    inference: Any
    operations: Any
    stack: AsyncExitStack

    async def worker(self, edge_id: str, *, wait: bool = True, **entry: Any) -> FakeWorker:
        worker = await self.stack.enter_async_context(FakeWorker(edge_id, self.redis, **entry))
        if wait:
            await self.known(edge_id)
        return worker

    async def known(self, *edge_ids: str, state: EdgeState = EdgeState.READY) -> None:
        await until(lambda: set(edge_ids) <= {e.edge_id for e in self.snapshots if e.state is state}, what=f"{edge_ids} {state.value}")

    @property
    def snapshots(self) -> Any:
        return self.broker._parts.edges.snapshots

    async def ask(self, prompt: str = "hello", *, timeout_s: float | None = 10.0, into: Answer | None = None, **fields: Any) -> Answer:
        answer = into or Answer()
        request = inference_pb2.GenerateRequest(prompt=prompt, **fields)
        try:
            async with open_stream(self.inference.Generate(request, timeout=timeout_s)) as responses:
                async for response in responses:
                    answer.responses.append(response)
        except grpc.aio.AioRpcError as error:
            answer.failure = failure_of(error)
        return answer

    async def events(self) -> list[events_pb2.TaskEvent]:
        return [read_task(record) async for record in self.log.read_all(TASK_EVENTS)]

    async def lives(self) -> dict[str, list[str]]:
        """Kinds of events by task; asserts that each task has exactly one terminal event."""
        events = sorted(await self.events(), key=lambda event: event.sequence)
        lives: dict[str, list[str]] = {}
        for event in events:
            lives.setdefault(event.task_id, []).append(kind_word(event))
        for task_id, kinds in lives.items():
            assert sum(kind in TERMINAL_KINDS for kind in kinds) == 1, (task_id, kinds)
        return lives

    async def quiet(self) -> None:
        await until(lambda: self.broker._parts.book.num_running == 0, what="no running tasks")
        assert not self.broker.engine.outstanding(0.0)


@asynccontextmanager
async def running(log: Any = None, redis_client: Any = None, **settings: Any) -> AsyncIterator[House]:
    clock = SystemClock()
    client = redis_client or open_redis(None)
    log = log or MemoryEventLog(clock)
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(Broker(BrokerSettings.load(**(FAST | settings)), log, client, clock))
        users = await stack.enter_async_context(channel(broker.address))
        inference = inference_pb2_grpc.InferenceServiceStub(users)
        operations = broker_pb2_grpc.BrokerServiceStub(users)
        yield House(broker, log, client, inference, operations, stack)
    if redis_client is None:
        await client.aclose()
