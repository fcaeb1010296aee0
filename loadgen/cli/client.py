"""Calls to a broker from the command line: one channel, a deadline on every call, streams cancelled when left."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from loadgen.cli.console import CommandError, ExitCode
from loadgen.cli.targets import address_of
from moedge.v1 import broker_pb2, broker_pb2_grpc, inference_pb2, inference_pb2_grpc
from services.runtime.net import PLAINTEXT, Network, open_stream
from services.runtime.security import user_security

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


def user_network(ca: Path | None, token_file: Path | None) -> Network:
    """How a user of the options --ca and --token-file reaches a broker."""
    return Network(user_security(ca, token_file))


@asynccontextmanager
async def broker_at(target: str, network: Network = PLAINTEXT) -> AsyncIterator[BrokerClient]:
    """An unreachable target that is so because of TLS ends the command with the reason."""
    target = address_of(target)
    async with network.channel(target, "broker") as open_channel:
        try:
            yield BrokerClient(broker_pb2_grpc.BrokerServiceStub(open_channel), inference_pb2_grpc.InferenceServiceStub(open_channel))
        except grpc.aio.AioRpcError as error:
            trouble = await network.trouble(target, "broker") if error.code() is grpc.StatusCode.UNAVAILABLE else ""
            if trouble:
                raise CommandError(trouble, ExitCode.UNREACHABLE) from error
            raise
