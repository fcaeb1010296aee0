"""Changes the version that a worker serves, while it serves: fetch, load aside, check, swap at a step boundary, remember.

An update that fails at any point leaves the version before it serving and says why. One update at a time. Deciding that there should be
one is the controller's business.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from moedge.v1 import worker_pb2
from services.model.blob_store import BlobStore
from services.model.errors import ModelError
from services.model.families.base import MoeModel
from services.model.generation import BatchEngine
from services.model.manifest import ModelManifest
from services.model.memory import held_bytes
from services.model.tokenizer import Tokenizer
from services.runtime.clock import Clock
from services.runtime.codec import duration
from services.runtime.failpoints import NO_FAILPOINT, Failpoint
from services.runtime.net import PLAINTEXT, Network
from services.runtime.status import RpcFailure, failed_precondition, failure_for
from services.worker.batch_loop import BatchLoop
from services.worker.committed import Committed, VersionDirectory
from services.worker.fetch import Fetcher, no_merger
from services.worker.first_version import FirstVersion
from services.worker.loading import Loader, changed_bytes
from services.worker.metrics import WorkerMetrics

logger = logging.getLogger(__name__)

FIRST_DOWNTIME_S = 1.0  # what an update with downtime is said to take before one was measured
RESTORE_WAIT_S = 2.0


@dataclass(slots=True)
class _Measured:
    """What one swap cost."""

    load_s: float = 0.0
    stall_s: float = 0.0
    downtime_s: float = 0.0
    peak_bytes: int = 0
    in_flight: int = 0


class Updater:
    def __init__(
        self,
        edge_id: str,
        memory_bytes: int,
        swap_reserve_bytes: int | None,
        fetch_bytes_per_s: float,
        loop: BatchLoop,
        first: FirstVersion,
        store: BlobStore,
        versions: VersionDirectory,
        fetcher: Fetcher,
        loader: Loader,
        executor: Executor,
        metrics: WorkerMetrics,
        clock: Clock,
        merger_address: str | None,
        network: Network = PLAINTEXT,
        failpoint: Failpoint = NO_FAILPOINT,
    ) -> None:
        self._edge_id = edge_id
        self._memory_bytes = memory_bytes
        self._swap_reserve_bytes = swap_reserve_bytes
        self._fetch_bytes_per_s = fetch_bytes_per_s
        self._loop = loop
        self._tokenizer: Tokenizer = first.served.tokenizer
        self._store = store
        self._versions = versions
        self._fetcher = fetcher
        self._loader = loader
        self._executor = executor
        self._metrics = metrics
        self._clock = clock
        self._pinned_versions: set[str] = set()
        self._merger_address = merger_address
        self._network = network
        self._failpoint = failpoint
        self._running: asyncio.Task[worker_pb2.SwapReport] | None = None
        self._down_since_s: float | None = None
        self._last_downtime_s = FIRST_DOWNTIME_S
        self.present = first.manifest
        self.previous = first.previous
        self.pinned = first.pinned
        self.num_updates = 0
        self.changed = asyncio.Event()

    @property
    def unavailable_s(self) -> float | None:
        """While the edge is down for an update: how long it probably still takes. None when it is not."""
        if self._down_since_s is None:
            return None
        return max(0.05, self._last_downtime_s - (self._clock.now_s() - self._down_since_s))

    @property
    def is_updating(self) -> bool:
        return self._running is not None and not self._running.done()

    async def load(self, version: str, merger_address: str) -> worker_pb2.SwapReport:
        if self.pinned:
            raise failed_precondition("PINNED", f"edge {self._edge_id} is pinned to {self.present.version}; unpin it first")
        return await self._alone(self._fetched_and_swapped(version, merger_address or self._merger_address))

    async def roll_back(self) -> str:
        """To the version before, from this worker's own disk, and pinned there."""
        target = self.previous
        if target is None:
            raise failed_precondition("NO_PREVIOUS", f"edge {self._edge_id} has served no version but {self.present.version}")
        await self._alone(self._swapped(target, fetch_s=0.0, bytes_fetched=0, pinned=True))
        return self.present.version

    async def pin(self, pinned: bool) -> str:
        """An update that runs already goes on; the next is refused."""
        self.pinned = pinned
        await self._on_disk(self._versions.write, self._pointer())
        self.changed.set()
        return self.present.version

    async def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _alone(self, update: Coroutine[Any, Any, worker_pb2.SwapReport]) -> worker_pb2.SwapReport:
        """Run the update to its end even if its caller goes away; refuse a second one meanwhile."""
        if self.is_updating:
            update.close()
            raise failed_precondition("UPDATE_RUNNING", f"edge {self._edge_id} is being updated; ask again when it is done")
        self._running = asyncio.create_task(self._explained(update), name=f"update of {self._edge_id}")
        return await asyncio.shield(self._running)

    async def _explained(self, update: Coroutine[Any, Any, worker_pb2.SwapReport]) -> worker_pb2.SwapReport:
        """What goes wrong, as a row of the status table that also says what goes on serving."""
        before = self.present.version
        try:
            return await update
        except (ModelError, OSError, RpcFailure) as error:
            failure = _failure(error, before)
            self._metrics.update_failed()
            logger.warning("update failed: %s", failure.message, extra={"edge_id": self._edge_id})
            await self._keep_only_live()
            raise failure from error

    async def _fetched_and_swapped(self, version: str, merger_address: str | None) -> worker_pb2.SwapReport:
        if not merger_address:
            raise no_merger()
        if version == self.present.version:
            return worker_pb2.SwapReport(edge_id=self._edge_id, from_version=version, to_version=version, ok=True)
        began_at_s = self._clock.now_s()
        async with self._network.channel(merger_address, "merger") as merger:
            manifest = await self._fetcher.manifest(merger, version)
            await self._failpoint.passed("manifest")
            self._refuse_unfit(manifest)
            self._pin_blobs(manifest)
            bytes_fetched = await self._fetcher.blobs(merger, manifest, self._fetch_bytes_per_s)
        await self._failpoint.passed("stored")
        return await self._swapped(manifest, self._clock.now_s() - began_at_s, bytes_fetched, pinned=False)

    def _refuse_unfit(self, manifest: ModelManifest) -> None:
        if manifest.base_model != self.present.base_model:
            raise failed_precondition(
                "OTHER_BASE", f"version {manifest.version} is of base model {manifest.base_model}, not {self.present.base_model}"
            )
        if manifest.model_bytes > self._memory_bytes:
            raise failed_precondition(
                "TOO_LARGE",
                f"version {manifest.version} weighs {manifest.model_bytes} bytes, edge {self._edge_id} holds {self._memory_bytes}",
            )

    async def _swapped(self, manifest: ModelManifest, fetch_s: float, bytes_fetched: int, pinned: bool) -> worker_pb2.SwapReport:
        before = self.present
        measured = _Measured()
        await self._loop.until(lambda engine: len(engine.versions) == 1)
        if self._fits_beside(manifest):
            await self._swap_beside(manifest, pinned, measured)
        else:
            await self._swap_down(manifest, pinned, measured)
        self.num_updates += 1
        self._metrics.swapped(measured.stall_s)
        await self._keep_only_live()
        self.changed.set()
        logger.info("serving %s after %s", manifest.version, before.version, extra={"edge_id": self._edge_id})
        return worker_pb2.SwapReport(
            edge_id=self._edge_id,
            from_version=before.version,
            to_version=manifest.version,
            fetch=duration(fetch_s),
            load=duration(measured.load_s),
            stall=duration(measured.stall_s),
            downtime=duration(measured.downtime_s),
            bytes_fetched=bytes_fetched,
            bytes_full=sum({blob.digest: blob.size_bytes for blob in manifest.blobs}.values()),
            peak_model_bytes=measured.peak_bytes,
            in_flight_tasks=measured.in_flight,
            ok=True,
        )

    def _fits_beside(self, manifest: ModelManifest) -> bool:
        if manifest.rest.digest != self.present.rest.digest:
            return False
        return self._swap_reserve_bytes is None or changed_bytes(manifest, self.present) <= self._swap_reserve_bytes

    async def _swap_beside(self, manifest: ModelManifest, pinned: bool, measured: _Measured) -> None:
        began_at_s = self._clock.now_s()
        with self._loop.watching() as watch:
            present = await self._loop.at_boundary(lambda engine: engine.model)
            model = await self._loader.beside(manifest, present, self.present, self._tokenizer)
            measured.load_s = self._clock.now_s() - began_at_s
            measured.peak_bytes = held_bytes((present, model))
            measured.in_flight = self._loop.num_running
            await self._commit(manifest, model, pinned)
            await self._loop.next_turn()
        measured.stall_s = watch.longest_s

    async def _swap_down(self, manifest: ModelManifest, pinned: bool, measured: _Measured) -> None:
        """Memory holds one version: finish what runs, let go of the model, load the next. Tasks that wait go on waiting."""
        self._down_since_s = began_at_s = self._clock.now_s()
        self.changed.set()
        before = self.present
        measured.in_flight = self._loop.num_running
        measured.peak_bytes = self.present.model_bytes
        try:
            await self._loop.empty()
            unloaded_at_s = self._clock.now_s()
            try:
                served = await self._loader.whole(manifest)
                measured.load_s = self._clock.now_s() - unloaded_at_s
                measured.peak_bytes = max(measured.peak_bytes, manifest.model_bytes)
                await self._commit(manifest, served.model, pinned)
                self._tokenizer = served.tokenizer
            except BaseException:
                await asyncio.shield(self._restore(before))
                raise
            measured.stall_s = self._clock.now_s() - unloaded_at_s
        finally:
            await self._loop.at_boundary(BatchEngine.resume)
            measured.downtime_s = self._last_downtime_s = self._clock.now_s() - began_at_s
            self._down_since_s = None

    async def _restore(self, manifest: ModelManifest) -> None:
        """Back to the version before a failed update, for as long as it takes."""
        while True:
            try:
                if self._merger_address and self._store.missing(manifest.digests):
                    async with self._network.channel(self._merger_address, "merger") as merger:
                        await self._fetcher.blobs(merger, manifest)
                served = await self._loader.whole(manifest)
                break
            except (ModelError, OSError, RpcFailure) as error:
                logger.error("version %s cannot be loaded again, no task runs meanwhile: %s", manifest.version, error)
            await self._clock.sleep(RESTORE_WAIT_S)
        await self._loop.at_boundary(lambda engine: engine.install(served.model, manifest.version))

    async def _commit(self, manifest: ModelManifest, model: MoeModel, pinned: bool) -> None:
        """From here on a restart serves the new version, and so does the next step."""
        before, pointer = self.present, self._pointer()
        try:
            await self._on_disk(self._versions.save_manifest, manifest)
            await self._failpoint.passed("commit")
            await self._on_disk(self._versions.write, Committed(manifest.version, before.version, pinned))
            await self._failpoint.passed("switch")
            await self._loop.at_boundary(lambda engine: engine.install(model, manifest.version))
            await self._failpoint.passed("ack")
        except Exception:  # of any kind: the pointer must name what goes on serving
            self._versions.write(pointer)
            raise
        self.present, self.previous, self.pinned = manifest, before, pinned

    def _pointer(self) -> Committed:
        return Committed(self.present.version, self.previous.version if self.previous else None, self.pinned)

    def _pin_blobs(self, manifest: ModelManifest) -> None:
        self._store.pin(manifest.version, manifest.digests)
        self._pinned_versions.add(manifest.version)

    async def _keep_only_live(self) -> None:
        """Blobs and manifests of the present and the previous version stay; others give way to the cache's limit."""
        live = {manifest.version: manifest for manifest in (self.present, self.previous) if manifest is not None}
        for version in self._pinned_versions - live.keys():
            self._store.unpin(version)
        self._pinned_versions = set(live)
        for version, manifest in live.items():
            self._store.pin(version, manifest.digests)
        await self._on_disk(self._versions.prune, live.keys())
        await self._on_disk(self._store.evict)

    async def _on_disk(self, call: Callable[..., object], *arguments: object) -> None:
        await asyncio.get_running_loop().run_in_executor(self._executor, call, *arguments)


def _failure(error: ModelError | OSError | RpcFailure, serving: str) -> RpcFailure:
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        code = grpc.StatusCode.RESOURCE_EXHAUSTED if full else grpc.StatusCode.INTERNAL
        return RpcFailure(code, "STORAGE", f"the update could not be stored ({error.strerror}); {serving} goes on serving")
    failure = failure_for(error)
    assert failure is not None
    message = f"{failure.message}; {serving} goes on serving"
    return RpcFailure(failure.code, failure.reason, message, field=failure.field, metadata=failure.metadata)
