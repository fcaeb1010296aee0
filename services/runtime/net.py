"""gRPC channels and servers with the options that notice a dead peer, and streams that end when their user is done.

Measured on grpcio 1.85: without `ping_timeout_ms` a frozen peer stays undetected for a minute; a server at defaults ends long silent
calls with GOAWAY `too_many_pings`; an abandoned `grpc.aio` stream is never cancelled. Hence both option sets and `open_stream`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from services.runtime.access import Guard, access_for
from services.runtime.bearer import bearing
from services.runtime.handshake import tls_trouble
from services.runtime.reflecting import MethodsToo
from services.runtime.security import Role, Security, role_name

MAX_MESSAGE_BYTES = 8 * 1024 * 1024
MAX_METADATA_BYTES = 16 * 1024

WILDCARDS = ("0.0.0.0", "::")  # listen on every address of the machine

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
    return PLAINTEXT.channel(address, "broker")


def server() -> grpc.aio.Server:
    return PLAINTEXT.server()


def bind(grpc_server: grpc.aio.Server, host: str, port: int) -> str:
    """Listen in plaintext on `host:port` (port 0: any free one); the address it got."""
    return PLAINTEXT.bind(grpc_server, host, port)


@dataclass(frozen=True, slots=True)
class Network:
    """How one process is reached and reaches others: in plaintext or over TLS, and what stands around every call."""

    security: Security | None = None
    interceptors: tuple[grpc.aio.ServerInterceptor[Any, Any], ...] = ()  # around calls taken, outermost first

    def channel(self, address: str, peer: Role) -> grpc.aio.Channel:
        """To a service of the role `peer`, which over TLS it has to prove. Close it, or use it as an async context manager."""
        if self.security is None:
            return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        options = (*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", role_name(peer)))
        secured = grpc.aio.secure_channel(address, self.security.channel_credentials(), options=options)
        return bearing(secured, self.security.token) if self.security.token and peer == "broker" else secured

    def server(self) -> grpc.aio.Server:
        """Over TLS it refuses every call but health checks to who may not make it."""
        guard = () if self.security is None else (Guard(access_for(self.security)),)
        return grpc.aio.server(options=SERVER_OPTIONS, interceptors=(*self.interceptors, *guard) or None)

    def bind(self, grpc_server: grpc.aio.Server, host: str, port: int) -> str:
        """Listen on `host:port` (port 0: any free one); the address it got."""
        bracketed = f"[{host}]" if ":" in host and not host.startswith("[") else host
        try:
            if self.security is None:
                bound = grpc_server.add_insecure_port(f"{bracketed}:{port}")
            else:
                bound = grpc_server.add_secure_port(f"{bracketed}:{port}", self.security.server_credentials())
        except RuntimeError as error:
            raise OSError(
                f"cannot listen on {host}:{port}: the port is taken or the host is not this machine's; choose another port"
            ) from error
        return f"{bracketed}:{bound}"

    @property
    def is_secure(self) -> bool:
        return self.security is not None

    async def trouble(self, address: str, peer: Role, timeout_s: float = 3.0) -> str:
        """After a failed call: what TLS has to do with it, in one line; empty when nothing. gRPC says UNAVAILABLE to all of it."""
        return await asyncio.to_thread(tls_trouble, address, peer, self.security, timeout_s)


PLAINTEXT = Network()


def with_port(address: str, bound: str) -> str:
    """`address`, with the port of `bound` where it names none."""
    is_bare_ip6 = address.count(":") > 1 and not address.startswith("[")
    host = f"[{address}]" if is_bare_ip6 else address
    has_port = not is_bare_ip6 and ":" in address.rpartition("]")[2]
    return address if has_port else f"{host}:{bound.rpartition(':')[2]}"


def reachable_address(bound: str, towards: Sequence[str]) -> str | None:
    """What others reach a server at that listens on `bound`: for a wildcard, this machine's address on the way to one of `towards`.

    `towards` are hosts. Asks the routing table; nothing is sent. None where no host's name is known and this machine has no other address.
    """
    if bound.rpartition(":")[0].strip("[]") not in WILDCARDS:
        return bound
    found = (own for own in map(_address_towards, towards) if own is not None)
    own = next(found, None) or _address_towards(socket.gethostname(), loopback=False)
    return None if own is None else with_port(own, bound)


def _address_towards(host: str, *, loopback: bool = True) -> str | None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            own = str(probe.getsockname()[0])
    except OSError:
        return None
    return own if loopback or not own.startswith(("127.", "::1")) else None


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
    reflection.enable_server_reflection(names, grpc_server, pool=cast(DescriptorPool, MethodsToo()))
    return Health(servicer, service_names)
