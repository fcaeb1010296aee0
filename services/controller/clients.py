"""The controller's calls: builds and manifests at the merger, rollouts at edge workers. Each with a deadline; failures as `RpcFailure`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import grpc
import grpc.aio

from moedge.v1 import merger_pb2, worker_pb2
from moedge.v1.merger_pb2_grpc import MergerServiceStub
from moedge.v1.worker_pb2_grpc import WorkerServiceStub
from services.runtime.net import channel, open_stream
from services.runtime.status import RpcFailure, failure_of


class MergerClient:
    """An async context manager that owns one channel."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def __aenter__(self) -> Self:
        self._channel = channel(self._address)
        self._stub = MergerServiceStub(self._channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close(None)

    async def manifest(self, version: str, timeout_s: float) -> merger_pb2.Manifest:
        with _as_failures():
            response = await self._stub.GetManifest(merger_pb2.GetManifestRequest(version=version), timeout=timeout_s)
        return response.manifest

    async def build(self, request: merger_pb2.BuildModelRequest, timeout_s: float) -> merger_pb2.Manifest:
        """Returns when the version is built; progress is read and dropped."""
        with _as_failures():
            async with open_stream(self._stub.BuildModel(request, timeout=timeout_s)) as stream:
                async for response in stream:
                    if response.HasField("manifest"):
                        return response.manifest
        raise RpcFailure(grpc.StatusCode.INTERNAL, "NO_MANIFEST", "the merger ended the build without a manifest")


async def load_version(address: str, version: str, timeout_s: float) -> worker_pb2.SwapReport:
    """Roll `version` out at the worker; returns when it serves. A report that is not `ok` is raised as ABORTED with its error."""
    with _as_failures():
        async with channel(address) as to_worker:
            response = await WorkerServiceStub(to_worker).LoadVersion(worker_pb2.LoadVersionRequest(version=version), timeout=timeout_s)
    if not response.report.ok:
        raise RpcFailure(grpc.StatusCode.ABORTED, "SWAP_FAILED", response.report.error or "the worker kept its version and did not say why")
    return response.report


@contextmanager
def _as_failures() -> Iterator[None]:
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise failure_of(error) from error
