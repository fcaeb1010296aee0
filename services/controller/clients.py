"""The controller's calls: builds and manifests at the merger, rollouts at edge workers. Each with a deadline; failures as `RpcFailure`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Self

import grpc
import grpc.aio

from moedge.v1 import merger_pb2, worker_pb2
from moedge.v1.merger_pb2_grpc import MergerServiceStub
from moedge.v1.worker_pb2_grpc import WorkerServiceStub
from services.controller.settings import ControllerSettings
from services.runtime.net import PLAINTEXT, Network, open_stream
from services.runtime.scope import outgoing
from services.runtime.security import Role
from services.runtime.status import RpcFailure, failure_of


class MergerClient:
    """An async context manager that owns one channel."""

    def __init__(self, address: str, network: Network = PLAINTEXT) -> None:
        self._address = address
        self._network = network

    async def __aenter__(self) -> Self:
        self._channel = self._network.channel(self._address, "merger")
        self._stub = MergerServiceStub(self._channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close(None)

    async def manifest(self, version: str, timeout_s: float) -> merger_pb2.Manifest:
        async with _as_failures(self._network, self._address, "merger"):
            response = await self._stub.GetManifest(merger_pb2.GetManifestRequest(version=version), timeout=timeout_s, metadata=outgoing())
        return response.manifest

    async def output_tokens(self, base_model: str, timeout_s: float) -> Mapping[str, float]:
        """Mean length of answers by task type, as calibration of the base model has it."""
        request = merger_pb2.GetProfilesRequest(base_model=base_model)
        async with _as_failures(self._network, self._address, "merger"):
            response = await self._stub.GetProfiles(request, timeout=timeout_s, metadata=outgoing())
        return dict(response.output_tokens)

    async def build(self, request: merger_pb2.BuildModelRequest, timeout_s: float) -> merger_pb2.Manifest:
        """Returns when the version is built; progress is read and dropped."""
        failing = _as_failures(self._network, self._address, "merger")
        async with failing, open_stream(self._stub.BuildModel(request, timeout=timeout_s, metadata=outgoing())) as stream:
            async for response in stream:
                if response.HasField("manifest"):
                    return response.manifest
        raise RpcFailure(grpc.StatusCode.INTERNAL, "NO_MANIFEST", "the merger ended the build without a manifest")


def build_request(
    settings: ControllerSettings, entry: worker_pb2.EdgeEntry, mix: Mapping[str, float], present_version: str = ""
) -> merger_pb2.BuildModelRequest:
    """A model of this mix in the memory of that edge, by the recipe of the settings."""
    recipe = settings.recipe
    options = merger_pb2.PlanOptions(
        method=recipe.method,
        allocation=recipe.allocation,
        grouping=recipe.grouping,
        recovery_steps=settings.recovery_steps,
        present_version=present_version,
    )
    return merger_pb2.BuildModelRequest(base_model=entry.base_model, mix=dict(mix), budget_bytes=entry.memory_bytes, options=options)


async def load_version(address: str, version: str, timeout_s: float, network: Network = PLAINTEXT) -> worker_pb2.SwapReport:
    """Roll `version` out at the worker; returns when it serves. A report that is not `ok` is raised as ABORTED with its error."""
    async with _as_failures(network, address, "worker"), network.channel(address, "worker") as to_worker:
        request = worker_pb2.LoadVersionRequest(version=version)
        response = await WorkerServiceStub(to_worker).LoadVersion(request, timeout=timeout_s, metadata=outgoing())
    if not response.report.ok:
        raise RpcFailure(grpc.StatusCode.ABORTED, "SWAP_FAILED", response.report.error or "the worker kept its version and did not say why")
    return response.report


@asynccontextmanager
async def _as_failures(network: Network, address: str, peer: Role) -> AsyncIterator[None]:
    """What the peer said, or what TLS has to say of the peer."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        failure = failure_of(error)
        if failure.code is grpc.StatusCode.UNAVAILABLE and failure.reason == "TRANSPORT":
            failure.message = await network.trouble(address, peer) or failure.message
        raise failure from error
