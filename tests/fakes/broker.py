"""A broker for tests of the load generator: real gRPC on the loopback, scripted answers, no workers behind it.

Every answer comes from a function of the request; edges are listed as given and may be changed while a test runs.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from moedge.v1 import broker_pb2, broker_pb2_grpc, inference_pb2, inference_pb2_grpc, worker_pb2
from services.runtime.clock import SystemClock
from services.runtime.codec import duration
from services.runtime.net import bind, server
from services.runtime.status import RpcFailure, guarded, not_found


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What the broker does with one task: wait, then answer `text` from `edge_id`, or end with a failure (before or after tokens)."""

    text: str = "yes"
    edge_id: str = "small"
    version: str = "v1"
    after_s: float = 0.0
    until: asyncio.Event | None = None  # answer once this is set
    refuse: RpcFailure | None = None
    fail_after_tokens: RpcFailure | None = None
    restarts: int = 0
    summary: bool = True
    predicted_quality: float = 0.75
    predicted_queue_wait_s: float = 0.02
    queue_wait_s: float = 0.05


NOT_HERE = RpcFailure(grpc.StatusCode.UNIMPLEMENTED, "NOT_HERE", "the fake broker does not do this")
Script = Callable[[inference_pb2.GenerateRequest], Answer]


def make_listed_edge(edge_id: str, version: str = "v1", **fields: Any) -> broker_pb2.Edge:
    defaults: dict[str, Any] = {"state": worker_pb2.EDGE_STATE_READY, "memory_bytes": 1000, "model_bytes": 900, "quality": {"facts": 0.75}}
    return broker_pb2.Edge(edge_id=edge_id, version=version, **(defaults | fields))


class FakeBroker(broker_pb2_grpc.BrokerServiceServicer, inference_pb2_grpc.InferenceServiceServicer):
    def __init__(self, script: Script, edges: list[broker_pb2.Edge] | None = None, quality_scale: float = 2.0) -> None:
        self._script = script
        self._clock = SystemClock()
        self._ids = itertools.count()
        self._quality_scale = quality_scale
        self._served: set[str] = set()
        self.edges = edges if edges is not None else [make_listed_edge("small"), make_listed_edge("large")]
        self.requests: list[inference_pb2.GenerateRequest] = []
        self.arrivals_s: list[float] = []
        self.deadlines_s: list[float] = []
        self.scores: dict[str, float] = {}

    @guarded
    async def Generate(self, request: inference_pb2.GenerateRequest, context: Any) -> AsyncIterator[inference_pb2.GenerateResponse]:
        self.arrivals_s.append(self._clock.now_s())
        self.requests.append(request)
        self.deadlines_s.append(context.time_remaining())
        answer = self._script(request)
        if answer.refuse is not None:
            raise answer.refuse
        task_id = f"served-{next(self._ids)}"
        yield inference_pb2.GenerateResponse(
            accepted=inference_pb2.Accepted(
                task_id=task_id, edge_id=answer.edge_id, version=answer.version, predicted_quality=answer.predicted_quality
            )
        )
        await self._clock.sleep(answer.after_s)
        if answer.until is not None:
            await answer.until.wait()
        words = answer.text.split()
        for restart in range(answer.restarts + 1):
            for token_id, word in enumerate(words):
                yield inference_pb2.GenerateResponse(token=inference_pb2.Token(token_id=token_id, text=word))
            if restart < answer.restarts:
                yield inference_pb2.GenerateResponse(restarted=inference_pb2.Restarted(edge_id=answer.edge_id, reason="edge died"))
        if answer.fail_after_tokens is not None:
            raise answer.fail_after_tokens
        if answer.summary:
            self._served.add(task_id)
            yield inference_pb2.GenerateResponse(summary=self._summary(task_id, request, answer))

    def _summary(self, task_id: str, request: inference_pb2.GenerateRequest, answer: Answer) -> inference_pb2.Summary:
        timings = inference_pb2.Timings(
            queue_wait=duration(answer.queue_wait_s),
            inference=duration(0.01),
            completion_time=duration(answer.after_s + 0.01),
            predicted_queue_wait=duration(answer.predicted_queue_wait_s),
            predicted_completion_time=duration(0.1),
            decision=duration(0.0002),
        )
        return inference_pb2.Summary(
            task_id=task_id,
            edge_id=answer.edge_id,
            version=answer.version,
            attempts=answer.restarts + 1,
            text=answer.text,
            prompt_tokens=5,
            output_tokens=len(answer.text.split()),
            timings=timings,
            task_type=request.task_type,
        )

    async def ListEdges(self, request: broker_pb2.ListEdgesRequest, context: Any) -> broker_pb2.ListEdgesResponse:
        return broker_pb2.ListEdgesResponse(edges=self.edges, policy="onto", base_model="toy", quality_scale=self._quality_scale)

    @guarded
    async def ScoreTask(self, request: broker_pb2.ScoreTaskRequest, context: Any) -> broker_pb2.ScoreTaskResponse:
        if request.task_id not in self._served:
            raise not_found("task", request.task_id)
        self.scores[request.task_id] = request.score
        return broker_pb2.ScoreTaskResponse()

    @guarded
    async def Explain(self, request: broker_pb2.ExplainRequest, context: Any) -> broker_pb2.ExplainResponse:
        raise NOT_HERE

    @guarded
    async def PinEdge(self, request: broker_pb2.PinEdgeRequest, context: Any) -> broker_pb2.PinEdgeResponse:
        raise NOT_HERE

    @guarded
    async def ResumeEdge(self, request: broker_pb2.ResumeEdgeRequest, context: Any) -> broker_pb2.ResumeEdgeResponse:
        raise NOT_HERE

    @guarded
    async def UnpinEdge(self, request: broker_pb2.UnpinEdgeRequest, context: Any) -> broker_pb2.UnpinEdgeResponse:
        raise NOT_HERE

    @guarded
    async def RollBackEdge(self, request: broker_pb2.RollBackEdgeRequest, context: Any) -> broker_pb2.RollBackEdgeResponse:
        raise NOT_HERE

    @guarded
    async def DrainEdge(self, request: broker_pb2.DrainEdgeRequest, context: Any) -> broker_pb2.DrainEdgeResponse:
        raise NOT_HERE

    @guarded
    async def Join(self, request: broker_pb2.JoinRequest, context: Any) -> broker_pb2.JoinResponse:
        raise NOT_HERE


@asynccontextmanager
async def serving(broker: FakeBroker) -> AsyncIterator[str]:
    """The broker on a free port of the loopback; yields its address."""
    grpc_server: grpc.aio.Server = server()
    broker_pb2_grpc.add_BrokerServiceServicer_to_server(broker, grpc_server)
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(broker, grpc_server)
    address = bind(grpc_server, "127.0.0.1", 0)
    await grpc_server.start()
    try:
        yield address
    finally:
        await grpc_server.stop(0.5)
