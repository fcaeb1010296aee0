"""Calls to a broker from the command line: one channel, a deadline on every call, streams cancelled when left."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from loadgen.cli.console import CommandError
from moedge.v1 import broker_pb2, broker_pb2_grpc, inference_pb2, inference_pb2_grpc
from services.runtime.net import channel, open_stream

CALL_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class BrokerClient:
    """Stubs of one broker."""

    broker: broker_pb2_grpc.BrokerServiceAsyncStub
    inference: inference_pb2_grpc.InferenceServiceAsyncStub

    async def list_edges(self) -> broker_pb2.ListEdgesResponse:
        return await self.broker.ListEdges(broker_pb2.ListEdgesRequest(), timeout=CALL_TIMEOUT_S)

    async def explain(self, request: broker_pb2.ExplainRequest) -> broker_pb2.ExplainResponse:
        return await self.broker.Explain(request, timeout=CALL_TIMEOUT_S)

    async def generate(self, request: inference_pb2.GenerateRequest, timeout_s: float) -> AsyncIterator[inference_pb2.GenerateResponse]:
        async with open_stream(self.inference.Generate(request, timeout=timeout_s)) as stream:
            async for response in stream:
                yield response


@asynccontextmanager
async def broker_at(target: str) -> AsyncIterator[BrokerClient]:
    host, _, port = target.rpartition(":")
    if not host or not port.isdigit():
        raise CommandError(f"target: {target!r} is not HOST:PORT, such as 127.0.0.1:50051")
    async with channel(target) as open_channel:
        yield BrokerClient(broker_pb2_grpc.BrokerServiceStub(open_channel), inference_pb2_grpc.InferenceServiceStub(open_channel))
