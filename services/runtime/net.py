"""gRPC channels and servers with the options that notice a dead peer, and streams that end when their user is done.

Measured on grpcio 1.85: without `ping_timeout_ms` a frozen peer stays undetected for a minute; a server at defaults ends long silent
calls with GOAWAY `too_many_pings`; an abandoned `grpc.aio` stream is never cancelled. Hence both option sets and `open_stream`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

MAX_MESSAGE_BYTES = 8 * 1024 * 1024
MAX_METADATA_BYTES = 16 * 1024

_LIMITS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", MAX_METADATA_BYTES),
)

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    *_LIMITS,
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    # A worker that restarts is found again within two seconds, not within two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Each channel owns its connection: closing one is not felt by another to the same edge.
    ("grpc.use_local_subchannel_pool", 1),
)

SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    *_LIMITS,
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    # Two processes on one port would share its calls silently.
    ("grpc.so_reuseport", 0),
)


def channel(address: str) -> grpc.aio.Channel:
    """A plaintext channel that notices a frozen peer within seconds. Close it, or use it as an async context manager."""
    return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)


def server() -> grpc.aio.Server:
    return grpc.aio.server(options=SERVER_OPTIONS)


def bind(grpc_server: grpc.aio.Server, host: str, port: int) -> str:
    """Listen on `host:port` (port 0: any free one); the address it got."""
    bracketed = f"[{host}]" if ":" in host and not host.startswith("[") else host
    try:
        bound = grpc_server.add_insecure_port(f"{bracketed}:{port}")
    except RuntimeError as error:
        raise OSError(
            f"cannot listen on {host}:{port}: the port is taken or the host is not this machine's; choose another port"
        ) from error
    return f"{bracketed}:{bound}"


class Cancellable(Protocol):
    def cancel(self) -> bool: ...


CallT = TypeVar("CallT", bound=Cancellable)


@asynccontextmanager
async def open_stream(call: CallT) -> AsyncIterator[CallT]:
    """`async with open_stream(stub.Generate(request, timeout=...)) as stream`: the call is cancelled on leaving, however that happens.

    A call that already ended is not touched by the cancel.
    """
    try:
        yield call
    finally:
        call.cancel()


class Health:
    """What health checks of this server answer: NOT_SERVING until `serving()`, and for good after `draining()`."""

    def __init__(self, servicer: HealthServicer, service_names: Sequence[str]) -> None:
        self.servicer = servicer
        self._names = ("", *service_names)

    async def serving(self, serving: bool = True) -> None:
        answer = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in self._names:
            await self.servicer.set(name, answer)

    async def draining(self) -> None:
        await self.serving(False)
        await self.servicer.enter_graceful_shutdown()


class _HealthServicer(HealthServicer):  # type: ignore[misc]  # the library is untyped
    """The library's servicer, not serving until told so."""

    def __init__(self, service_names: Sequence[str]) -> None:
        super().__init__()
        self._server_status = dict.fromkeys(("", *service_names), health_pb2.HealthCheckResponse.NOT_SERVING)


def add_health_and_reflection(grpc_server: grpc.aio.Server, service_names: Sequence[str]) -> Health:
    """Adds `grpc.health.v1` and reflection for the full service names (`moedge.v1.InferenceService`, ...)."""
    servicer = _HealthServicer(service_names)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, grpc_server)
    names = (*service_names, "grpc.health.v1.Health", reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, grpc_server)
    return Health(servicer, service_names)
