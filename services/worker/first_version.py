"""What an edge worker serves when it starts: its last committed version, from its own disk, or else one that the merger builds."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import grpc
import grpc.aio

from moedge.v1 import merger_pb2, merger_pb2_grpc
from services.core.merging.mix import first_mix
from services.model.blob_store import BlobStore
from services.model.errors import BlobError
from services.model.expert_store import ServedModel
from services.model.manifest import ModelManifest
from services.runtime.clock import Clock
from services.runtime.edges import EdgeConfig
from services.runtime.net import open_stream
from services.runtime.status import RpcFailure, failure_of
from services.worker.committed import Committed, VersionDirectory, parse_manifest
from services.worker.fetch import TRANSIENT, Fetcher
from services.worker.loading import Loader

logger = logging.getLogger(__name__)

BUILD_TIMEOUT_S = 3600.0
ASK_TIMEOUT_S = 2.0
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class FirstVersion:
    served: ServedModel
    manifest: ModelManifest
    previous: ModelManifest | None
    pinned: bool


class Starter:
    def __init__(
        self,
        edge: EdgeConfig,
        base_model: str,
        budget_bytes: int,
        store: BlobStore,
        versions: VersionDirectory,
        fetcher: Fetcher,
        loader: Loader,
        clock: Clock,
    ) -> None:
        self._edge = edge
        self._base_model = base_model
        self._budget_bytes = budget_bytes
        self._store = store
        self._versions = versions
        self._fetcher = fetcher
        self._loader = loader
        self._clock = clock

    async def open(self, merger: grpc.aio.Channel | None) -> FirstVersion:
        """Waits for the merger when there is nothing to serve without it. Ends only with a version, or with what makes one impossible."""
        self._store.discard_staged()
        committed = self._versions.read()
        first = await self._from_disk(committed, merger) if committed is not None else None
        if first is None:
            if merger is None:
                raise BlobError("no version is on disk and no merger is set; set MOEDGE_WORKER_MERGER_ADDRESS")
            first = await self._from_merger(merger)
        self._reclaim(first)
        return first

    def _reclaim(self, first: FirstVersion) -> None:
        """What a killed process fetched and never committed goes: its manifests now, its blobs as the cache's limit asks."""
        self._versions.prune({manifest.version for manifest in (first.manifest, first.previous) if manifest is not None})
        self._store.evict()

    async def _from_disk(self, committed: Committed, merger: grpc.aio.Channel | None) -> FirstVersion | None:
        manifest = self._versions.manifest(committed.version)
        if manifest is None or manifest.model_bytes > self._edge.memory_bytes:
            return None
        base_model = await self._base_of(merger)
        if base_model not in ("", manifest.base_model):
            logger.info("the version on disk is of another base model than the merger's; asking for a new one")
            return None
        self._store.pin(manifest.version, manifest.digests)
        try:
            served = await self._loader.whole(manifest)
        except BlobError as error:
            logger.warning("the version on disk cannot serve: %s", error)
            self._store.unpin(manifest.version)
            return None
        previous = self._versions.manifest(committed.previous) if committed.previous else None
        if previous is not None:
            self._store.pin(previous.version, previous.digests)
        return FirstVersion(served, manifest, previous, committed.pinned)

    async def _base_of(self, merger: grpc.aio.Channel | None) -> str:
        """The merger's base model; empty while it is not there to ask."""
        if merger is None:
            return ""
        stub = merger_pb2_grpc.MergerServiceStub(merger)
        try:
            request = merger_pb2.GetProfilesRequest(base_model=self._base_model)
            return str((await stub.GetProfiles(request, timeout=ASK_TIMEOUT_S)).base_model)
        except grpc.aio.AioRpcError:
            return ""

    async def _from_merger(self, merger: grpc.aio.Channel) -> FirstVersion:
        wait_s = FIRST_WAIT_S
        while True:
            try:
                manifest = await self._built(merger)
                self._store.pin(manifest.version, manifest.digests)
                await self._fetcher.blobs(merger, manifest)
                served = await self._loader.whole(manifest)
                break
            except RpcFailure as failure:
                if failure.code not in TRANSIENT:
                    raise
                logger.info("waiting for the merger: %s", failure.message)
            await self._clock.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        self._versions.save_manifest(manifest)
        self._versions.write(Committed(manifest.version))
        return FirstVersion(served, manifest, None, False)

    async def _built(self, merger: grpc.aio.Channel) -> ModelManifest:
        stub = merger_pb2_grpc.MergerServiceStub(merger)
        try:
            mix = dict(self._edge.initial_mix) or await self._first_mix(stub)
            request = merger_pb2.BuildModelRequest(base_model=self._base_model, mix=mix, budget_bytes=self._budget_bytes)
            async with open_stream(stub.BuildModel(request, timeout=BUILD_TIMEOUT_S)) as stream:
                async for answer in stream:
                    if answer.WhichOneof("event") == "manifest":
                        return parse_manifest(answer.manifest)
                    logger.debug("merger: %s, %.0f %%", answer.progress.phase, 100 * answer.progress.fraction)
        except grpc.aio.AioRpcError as error:
            raise failure_of(error) from error
        raise RpcFailure(grpc.StatusCode.UNAVAILABLE, "NO_MANIFEST", "the merger ended the build without a manifest")

    async def _first_mix(self, stub: merger_pb2_grpc.MergerServiceAsyncStub) -> dict[str, float]:
        """Led by a task type of this edge's own; empty, which is even, where the whole model fits."""
        told = await stub.GetProfiles(merger_pb2.GetProfilesRequest(base_model=self._base_model), timeout=ASK_TIMEOUT_S)
        if self._budget_bytes >= told.model_bytes.full:
            return {}
        return first_mix(list(told.profiles), self._edge.number)
