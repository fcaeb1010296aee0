"""Certificates and tokens as `moedge certs` makes them, the networks of services and users that hold them, and servers to call."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from loadgen.certificates import make_pair, read_authority, renew, write_stack
from moedge.v1 import broker_pb2_grpc, inference_pb2_grpc, merger_pb2_grpc, worker_pb2_grpc
from services.runtime.net import Network, add_health_and_reflection, open_stream
from services.runtime.security import Role, Security, read_security, user_security
from services.runtime.settings import ServiceSettings

DAYS = 30
SERVICES: dict[Role, tuple[str, ...]] = {
    "broker": ("moedge.v1.InferenceService", "moedge.v1.BrokerService"),
    "worker": ("moedge.v1.InferenceService", "moedge.v1.WorkerService"),
    "merger": ("moedge.v1.MergerService",),
    "controller": (),
}
ADDERS: dict[str, tuple[Any, Any]] = {
    "moedge.v1.InferenceService": (inference_pb2_grpc.add_InferenceServiceServicer_to_server, inference_pb2_grpc.InferenceServiceServicer),
    "moedge.v1.BrokerService": (broker_pb2_grpc.add_BrokerServiceServicer_to_server, broker_pb2_grpc.BrokerServiceServicer),
    "moedge.v1.WorkerService": (worker_pb2_grpc.add_WorkerServiceServicer_to_server, worker_pb2_grpc.WorkerServiceServicer),
    "moedge.v1.MergerService": (merger_pb2_grpc.add_MergerServiceServicer_to_server, merger_pb2_grpc.MergerServiceServicer),
}


@dataclass(frozen=True, slots=True)
class Certificates:
    """One folder of `moedge certs`."""

    folder: Path

    def settings(self, role: str, **overrides: Any) -> ServiceSettings:
        paths = {"tls_cert": self.folder / f"{role}.pem", "tls_key": self.folder / f"{role}.key", "tls_ca": self.folder / "ca.pem"}
        return ServiceSettings(**{**paths, **overrides})

    def security(self, role: Role, **overrides: Any) -> Security:
        tokens = self.folder / "tokens.toml" if role == "broker" else None
        found = read_security(self.settings(role, **overrides), role, tokens_file=tokens)
        assert found is not None
        return found

    def service(self, role: Role) -> Network:
        return Network(self.security(role))

    def user(self, token: str | None = "user") -> Network:
        return Network(user_security(self.folder / "ca.pem", None if token is None else self.folder / f"{token}.token"))

    def signed(self, names: Sequence[str], *, role: Role | None, days: int = DAYS, made_at: datetime | None = None) -> Network:
        """Someone with a certificate of this authority for other names or another time; unchecked, as only a stranger's would be."""
        pair = make_pair(read_authority(self.folder), names, made_at or datetime.now(UTC), days)
        files = (self.folder / "stranger.pem", self.folder / "stranger.key")
        files[0].write_bytes(pair.certificate)
        files[1].write_bytes(pair.key)
        return Network(Security((self.folder / "ca.pem").read_bytes(), role, pair.certificate, pair.key, files))


def made(folder: Path) -> Certificates:
    write_stack(folder, datetime.now(UTC), DAYS)
    return Certificates(folder)


def expired(certificates: Certificates, folder: Path) -> Certificates:
    """The same authority and tokens; the certificates ended a month ago."""
    shutil.copytree(certificates.folder, folder)
    renew(folder, datetime.now(UTC) - timedelta(days=2 * DAYS), DAYS)
    return Certificates(folder)


@asynccontextmanager
async def serving(network: Network, role: Role) -> AsyncIterator[str]:
    """A server of the role's services that implements nothing: who is let in is told UNIMPLEMENTED."""
    server = network.server()
    health = add_health_and_reflection(server, SERVICES[role])
    for name in SERVICES[role]:
        add, servicer = ADDERS[name]
        add(servicer(), server)
    address = network.bind(server, "127.0.0.1", 0)
    await server.start()
    await health.serving()
    try:
        yield address
    finally:
        await server.stop(0)


async def reflected(network: Network, address: str, peer: Role) -> list[MethodDescriptor]:
    """Every method that reflection lists, as any client would find them."""
    async with network.channel(address, peer) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)

        async def ask(**request: str) -> Any:
            stream = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**request)]), timeout=10)
            async with open_stream(stream):
                return await stream.read()

        names = [service.name for service in (await ask(list_services="")).list_services_response.service]
        pool = DescriptorPool()
        files: dict[str, FileDescriptorProto] = {}
        for name in names:
            for written in (await ask(file_containing_symbol=name)).file_descriptor_response.file_descriptor_proto:
                file = FileDescriptorProto.FromString(written)
                files[file.name] = file

        def add(name: str) -> None:
            if (file := files.pop(name, None)) is not None:
                for needed in file.dependency:
                    add(needed)
                pool.Add(file)

        for name in list(files):
            add(name)
        return [method for name in names for method in pool.FindServiceByName(name).methods]


def path_of(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


REFUSED_WITHIN_S = 2.0


async def status_of(channel: Any, method: MethodDescriptor) -> grpc.StatusCode:
    """How a call of any method with an empty request ends; OK as soon as it is answered."""
    path = path_of(method)
    if not method.server_streaming:
        code = await channel.unary_unary(path)(b"", timeout=10).code()
        assert isinstance(code, grpc.StatusCode)
        return code
    if not method.client_streaming:
        return await _answered(channel.unary_stream(path)(b"", timeout=10))
    # Nothing is written before the server had time to refuse: one that ends a call while its client still writes may reset the stream
    # before the status is read, which then is INTERNAL.
    stream = channel.stream_stream(path)(timeout=10)
    ending = asyncio.ensure_future(stream.code())
    await asyncio.wait({ending}, timeout=REFUSED_WITHIN_S)
    if ending.done():
        refused: grpc.StatusCode = ending.result()
        return refused
    ending.cancel()
    await stream.write(b"")
    return await _answered(stream)


async def _answered(stream: Any) -> grpc.StatusCode:
    async with open_stream(stream):
        try:
            await stream.read()
        except grpc.aio.AioRpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK
