"""Brings a model version from the merger into the worker's blob store: its manifest, then only the blobs it lacks.

Chunks are checked by crc32, whole blobs by their blake3 name. A broken transfer goes on where it stopped; after three tries it fails.
"""

from __future__ import annotations

import asyncio
import logging
import math
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import aclosing
from typing import Any, TypeVar

import grpc
import grpc.aio

from moedge.v1 import merger_pb2, merger_pb2_grpc
from services.model.blob_store import BlobStore
from services.model.errors import BlobError
from services.model.manifest import BlobRef, ModelManifest
from services.runtime.clock import Clock
from services.runtime.failpoints import NO_FAILPOINT, Failpoint
from services.runtime.net import open_stream
from services.runtime.scope import outgoing
from services.runtime.status import RpcFailure, data_loss, failure_of
from services.worker.committed import parse_manifest

logger = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

NUM_TRIES = 3
NUM_STREAMS = 4  # transfers at once
PIECE_BYTES = 4 << 20  # of a blob, written at once; so much of each transfer is in memory
CALL_TIMEOUT_S = 120.0
RETRY_WAIT_S = 0.2
TRANSIENT = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED})


class Fetcher:
    """Disk work runs on `executor`, so the event loop never waits for it."""

    def __init__(
        self, store: BlobStore, executor: Executor, clock: Clock, failpoint: Failpoint = NO_FAILPOINT, piece_bytes: int = PIECE_BYTES
    ) -> None:
        self._store = store
        self._failpoint = failpoint
        self._executor = executor
        self._clock = clock
        self._piece_bytes = piece_bytes

    async def manifest(self, merger: grpc.aio.Channel, version: str) -> ModelManifest:
        """NOT_FOUND when the merger has no such version."""
        stub = merger_pb2_grpc.MergerServiceStub(merger)
        try:
            answer = await stub.GetManifest(merger_pb2.GetManifestRequest(version=version), timeout=CALL_TIMEOUT_S, metadata=outgoing())
        except grpc.aio.AioRpcError as error:
            raise failure_of(error) from error
        manifest = parse_manifest(answer.manifest)
        if manifest.version != version:
            raise data_loss(f"the merger answered with the manifest of {manifest.version}, not of {version}")
        return manifest

    async def blobs(self, merger: grpc.aio.Channel, manifest: ModelManifest, bytes_per_s: float = math.inf) -> int:
        """Fetch what is lacking, no faster than that; the bytes that came. One blob that cannot be had ends the others."""
        pace = _Pace(self._clock, bytes_per_s)
        lacking = await self._on_disk(self._store.missing, manifest.digests)
        by_digest = {blob.digest: blob for blob in manifest.blobs}
        stub = merger_pb2_grpc.MergerServiceStub(merger)
        turns = asyncio.Semaphore(NUM_STREAMS)

        async def fetch(blob: BlobRef) -> int:
            async with turns:
                return await self._with_tries(stub, blob, pace)

        try:
            async with asyncio.TaskGroup() as group:
                transfers = [group.create_task(fetch(by_digest[digest])) for digest in lacking]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return sum(transfer.result() for transfer in transfers)

    async def _with_tries(self, stub: Any, blob: BlobRef, pace: _Pace) -> int:
        num_bytes = 0
        for number in range(1, NUM_TRIES + 1):
            try:
                async for received in self._chunks(stub, blob):
                    num_bytes += received
                    await pace.after(received)
                await self._failpoint.passed("staged")
                await self._on_disk(self._store.commit, blob.digest, blob.size_bytes)
                return num_bytes
            except (BlobError, grpc.aio.AioRpcError) as error:
                failure = failure_of(error) if isinstance(error, grpc.aio.AioRpcError) else data_loss(str(error))
                transient = isinstance(error, BlobError) or failure.code in TRANSIENT
                logger.warning("blob %s, try %d of %d: %s", blob.digest[:12], number, NUM_TRIES, failure.message)
                if number == NUM_TRIES or not transient:
                    raise failure from error
                await self._clock.sleep(RETRY_WAIT_S * number)
        raise AssertionError("unreachable")

    async def _chunks(self, stub: Any, blob: BlobRef) -> AsyncIterator[int]:
        """Receive the rest of a blob into its unfinished download; yields the size of each piece that is there."""
        staged_bytes = await self._on_disk(self._store.staged_bytes, blob.digest)
        request = merger_pb2.FetchBlobRequest(digest=blob.digest, offset=staged_bytes)
        async with (
            open_stream(stub.FetchBlob(request, timeout=CALL_TIMEOUT_S, metadata=outgoing())) as stream,
            aclosing(_pieces(stream, blob.digest, self._piece_bytes)) as pieces,
        ):
            async for offset, data in pieces:
                await self._on_disk(self._store.append, blob.digest, offset, data)
                await self._failpoint.passed("chunk")
                yield len(data)
                if offset + len(data) > blob.size_bytes:
                    return  # longer than the manifest says: the commit refuses it

    async def _on_disk(self, call: Callable[..., ResultT], *arguments: Any) -> ResultT:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call, *arguments)


class _Pace:
    """Keeps all transfers of one version together below a rate: receiving and writing take processors from the tasks that run."""

    def __init__(self, clock: Clock, bytes_per_s: float) -> None:
        self._clock = clock
        self._bytes_per_s = bytes_per_s
        self._due_at_s = 0.0  # when what has come should have come at the earliest

    async def after(self, num_bytes: int) -> None:
        now_s = self._clock.now_s()
        self._due_at_s = max(self._due_at_s, now_s) + num_bytes / self._bytes_per_s
        if self._due_at_s > now_s:
            await self._clock.sleep(self._due_at_s - now_s)


async def _pieces(
    stream: AsyncIterator[merger_pb2.FetchBlobResponse], digest: str, piece_bytes: int
) -> AsyncGenerator[tuple[int, bytes], None]:
    """Chunks, each checked, joined into pieces that are worth a turn of the disk's thread, with their offsets.

    That thread yields the processor to serving, so a turn takes milliseconds whatever it writes. What came before an error comes first.
    """
    offset, parts, num_bytes = 0, list[bytes](), 0
    try:
        async for chunk in stream:
            if zlib.crc32(chunk.data) != chunk.crc32:
                raise BlobError(f"blob {digest}: a chunk at offset {chunk.offset} came damaged")
            if num_bytes >= piece_bytes or chunk.offset != offset + num_bytes:
                if parts:
                    yield offset, b"".join(parts)
                offset, parts, num_bytes = chunk.offset, [], 0
            parts.append(chunk.data)
            num_bytes += len(chunk.data)
    except (BlobError, grpc.aio.AioRpcError):
        if parts:
            yield offset, b"".join(parts)
        raise
    if parts:
        yield offset, b"".join(parts)


def no_merger() -> RpcFailure:
    return RpcFailure(grpc.StatusCode.FAILED_PRECONDITION, "NO_MERGER", "merger_address: none was given and none is set; name the merger")
