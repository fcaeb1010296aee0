"""An edge worker without a model: real gRPC on the loopback, an entry in the registry, and words for answers.

The answer is a function of version and prompt, so that a test can tell whether tokens were lost, repeated or mixed. It can be told to die
mid-stream, to freeze, to refuse, and to answer slowly.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Self

import redis.asyncio

from moedge.v1 import inference_pb2, inference_pb2_grpc, worker_pb2, worker_pb2_grpc
from services.core.offload.values import Link, StepTimes
from services.runtime.clock import SystemClock
from services.runtime.codec import duration, link_to_proto, step_times_to_proto
from services.runtime.net import bind, server
from services.runtime.status import RpcFailure, failed_precondition, guarded
from services.runtime.store import EdgeRegistry

NUM_TOKENS = 6
ENTRY_INTERVAL_S = 0.1


def answer(version: str, prompt: str, num_tokens: int = NUM_TOKENS) -> list[str]:
    """The tokens' texts."""
    return [f"{version}/{prompt}/{n} " for n in range(num_tokens)]


class FakeWorker(inference_pb2_grpc.InferenceServiceServicer, worker_pb2_grpc.WorkerServiceServicer):
    def __init__(self, edge_id: str, redis_client: redis.asyncio.Redis, **entry: Any) -> None:
        self._registry = EdgeRegistry(redis_client)
        self._clock = SystemClock()
        self.entry = worker_pb2.EdgeEntry(
            edge_id=edge_id,
            base_model="toy",
            version=entry.pop("version", "v1"),
            state=worker_pb2.EDGE_STATE_READY,
            quality=entry.pop("quality", {"facts": 0.8, "sums": 0.4}),
            step_times=step_times_to_proto(entry.pop("step_times", StepTimes(0.001, 0.0, 0.001, 0.0))),
            max_batch=entry.pop("max_batch", 2),
            max_queue=entry.pop("max_queue", 8),
            epoch=uuid.uuid4().hex,
            **entry,
        )
        self.token_s = 0.001
        self.start_s = 0.0
        self.die_after_tokens: int | None = None
        self.refuse: RpcFailure | None = None
        self.frozen = asyncio.Event()
        self.deaf = False  # heartbeats do not reach it, all else does
        self.requests: list[inference_pb2.GenerateRequest] = []
        self.num_active = 0
        self.others: Counter[str] = Counter()  # tasks that it says it has besides, by broker
        self._senders: dict[int, str] = {}
        self.num_cancelled = 0
        self._server = server()
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self, self._server)
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(self, self._server)

    @property
    def edge_id(self) -> str:
        return self.entry.edge_id

    def link(self, region: str, link: Link) -> None:
        self.entry.links[region].CopyFrom(link_to_proto(link))

    async def __aenter__(self) -> Self:
        self.entry.address = bind(self._server, "127.0.0.1", 0)
        await self._server.start()
        self._presence = asyncio.create_task(self._renew())
        await self.announce()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.die()
        await self._registry.remove(self.edge_id)

    async def announce(self) -> None:
        self.entry.sequence += 1
        await self._registry.put(self.entry)

    async def die(self) -> None:
        """As killed: connections end, the registry entry is left to expire."""
        self._presence.cancel()
        with suppress(asyncio.CancelledError):
            await self._presence
        await self._server.stop(None)

    async def _renew(self) -> None:
        while True:
            await self._clock.sleep(ENTRY_INTERVAL_S)
            await self._unfrozen()
            await self.announce()

    @guarded
    async def Generate(self, request: inference_pb2.GenerateRequest, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
        self.requests.append(request)
        self.num_active += 1
        self._senders[id(request)] = request.dispatch.broker_id
        try:
            async for response in self._serve(request):
                yield response
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_active -= 1
            del self._senders[id(request)]

    async def _serve(self, request: inference_pb2.GenerateRequest) -> AsyncIterator[inference_pb2.GenerateResponse]:
        version, dispatch = self.entry.version, request.dispatch
        await self._unfrozen()
        if self.refuse is not None:
            raise self.refuse
        if dispatch.required_version and dispatch.required_version != version:
            raise failed_precondition("VERSION_MISMATCH", f"serves {version}")
        await self._clock.sleep(self.start_s)
        accepted = inference_pb2.Accepted(task_id=dispatch.task_id, edge_id=self.edge_id, version=version)
        yield inference_pb2.GenerateResponse(accepted=accepted)
        texts = answer(version, request.prompt, min(NUM_TOKENS, request.max_tokens))
        for n, text in list(enumerate(texts))[len(dispatch.emitted_token_ids) :]:
            if n == self.die_after_tokens:
                self._death = asyncio.create_task(self.die())
                await asyncio.Event().wait()
            await self._unfrozen()
            await self._clock.sleep(self.token_s)
            yield inference_pb2.GenerateResponse(token=inference_pb2.Token(token_id=n, text=text))
        yield inference_pb2.GenerateResponse(
            summary=inference_pb2.Summary(
                task_id=dispatch.task_id,
                edge_id=self.edge_id,
                version=version,
                text="".join(texts),
                finish_reason=inference_pb2.FINISH_REASON_STOP,
                prompt_tokens=len(request.prompt.split()),
                output_tokens=len(texts),
                timings=inference_pb2.Timings(queue_wait=duration(self.start_s), inference=duration(self.token_s * len(texts))),
            )
        )

    async def _unfrozen(self) -> None:
        """A frozen worker answers nothing and says nothing."""
        while self.frozen.is_set():
            await self._clock.sleep(0.02)

    @guarded
    async def GetStatus(self, request: worker_pb2.GetStatusRequest, context: Any) -> worker_pb2.GetStatusResponse:
        await self._unfrozen()
        if self.deaf:
            await asyncio.Event().wait()
        senders = Counter({"": 0}) + self.others + Counter(self._senders.values())
        return worker_pb2.GetStatusResponse(entry=self.entry, running_tasks=self.num_active, tasks_by_broker=dict(senders))

    @guarded
    async def LoadVersion(self, request: worker_pb2.LoadVersionRequest, context: Any) -> worker_pb2.LoadVersionResponse:
        report = worker_pb2.SwapReport(edge_id=self.edge_id, from_version=self.entry.version, to_version=request.version, ok=True)
        self.entry.previous_version, self.entry.version = self.entry.version, request.version
        self.entry.updates += 1
        await self.announce()
        return worker_pb2.LoadVersionResponse(report=report)

    @guarded
    async def SetPinned(self, request: worker_pb2.SetPinnedRequest, context: Any) -> worker_pb2.SetPinnedResponse:
        self.entry.pinned = request.pinned
        return worker_pb2.SetPinnedResponse(version=self.entry.version)

    @guarded
    async def RollBack(self, request: worker_pb2.RollBackRequest, context: Any) -> worker_pb2.RollBackResponse:
        if not self.entry.previous_version:
            raise failed_precondition("NO_PREVIOUS_VERSION", "there is no version to go back to")
        self.entry.version, self.entry.pinned = self.entry.previous_version, True
        return worker_pb2.RollBackResponse(version=self.entry.version)

    @guarded
    async def Drain(self, request: worker_pb2.DrainRequest, context: Any) -> worker_pb2.DrainResponse:
        self.entry.state = worker_pb2.EDGE_STATE_DRAINING
        await self.announce()
        return worker_pb2.DrainResponse(outstanding_tasks=self.num_active)

    @guarded
    async def Resume(self, request: worker_pb2.ResumeRequest, context: Any) -> worker_pb2.ResumeResponse:
        self.entry.state = worker_pb2.EDGE_STATE_READY
        await self.announce()
        return worker_pb2.ResumeResponse(version=self.entry.version)
