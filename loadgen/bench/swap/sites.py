"""The two processes of a swap: a merger that has made its versions, and an edge worker that serves the first of them.

Each runs alone in a child, so that the worker's memory is the worker's, and sends and clocks of the benchmark are in neither.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loadgen.child import Addresses, Outbox

if TYPE_CHECKING:
    from loadgen.bench.swap.versions import VersionsOptions
    from services.model.build import Builder
    from services.model.manifest import ModelManifest

EDGE, REGION = "edge", "here"
TOLD = "told"
PROFILED_ITEMS = 64  # of each task type
DRAIN_S = 2.0
NO_LIMIT_BYTES = 1 << 50


@dataclass(frozen=True, slots=True)
class Source:
    """What profiles are measured on."""

    model: str
    tasks: str


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    memory_bytes: int  # for versions; `reserve_bytes` of it for swaps
    reserve_bytes: int
    max_batch: int
    cache_limit_bytes: int


@asynccontextmanager
async def serve_merger(directory: Path, source: Source, options: VersionsOptions, outbox: Outbox) -> AsyncIterator[Addresses]:
    """Ready when every version is in its cache and the worker's own disk holds the first."""
    import asyncio

    from loadgen.bench.swap.versions import make_versions
    from services.merger.service import Merger
    from services.merger.settings import MergerSettings
    from services.runtime.clock import SystemClock
    from services.runtime.logs import configure

    configure("human", "WARNING")
    settings = MergerSettings.load(
        model=source.model,
        tasks=source.tasks,
        cache_dir=directory / "merger",
        cache_limit_bytes=NO_LIMIT_BYTES,
        profiled_items=PROFILED_ITEMS,
        drain_s=DRAIN_S,
    )
    async with Merger(settings, SystemClock()) as merger:
        manifests = await asyncio.to_thread(make_versions, merger.builder, options, lambda what: outbox.send(TOLD, what.encode()))
        commit_first(directory / "worker" / EDGE, merger.builder, manifests[0])
        yield {"merger": merger.address, "versions": json.dumps(_told(manifests))}


def commit_first(directory: Path, builder: Builder, manifest: ModelManifest) -> None:
    """The worker's own disk as it is once it has served this version. Blobs are linked, not copied."""
    from services.worker.committed import Committed, VersionDirectory

    (directory / "blobs").mkdir(parents=True)
    for digest in manifest.digests:
        os.link(builder.store.directory / digest, directory / "blobs" / digest)
    versions = VersionDirectory(directory)
    versions.save_manifest(manifest)
    versions.write(Committed(manifest.version))


def _told(manifests: Sequence[ModelManifest]) -> list[dict[str, object]]:
    from services.worker.loading import changed_bytes

    before = (manifests[0], *manifests)
    return [
        {"version": manifest.version, "model_bytes": manifest.model_bytes, "changed_bytes": changed_bytes(manifest, earlier)}
        for manifest, earlier in zip(manifests, before, strict=False)
    ]


@asynccontextmanager
async def serve_worker(directory: Path, options: WorkerOptions, outbox: Outbox) -> AsyncIterator[Addresses]:
    from services.core.offload.values import Link
    from services.runtime.clock import SystemClock
    from services.runtime.edges import EdgeConfig
    from services.runtime.eventlog_memory import MemoryEventLog
    from services.runtime.logs import configure
    from services.runtime.store import open_redis
    from services.worker.service import Worker
    from services.worker.settings import WorkerSettings

    configure("human", "WARNING")
    clock = SystemClock()
    edge = EdgeConfig(
        EDGE, {REGION: Link(0.0, 1e9, 1e9)}, memory_bytes=options.memory_bytes, device="cpu", max_batch=options.max_batch, max_queue=64
    )
    settings = WorkerSettings.load(
        cache_dir=directory / "worker",
        cache_limit_bytes=options.cache_limit_bytes,
        swap_reserve_bytes=options.reserve_bytes,
        drain_s=DRAIN_S,
    )
    redis = open_redis(None)
    try:
        async with MemoryEventLog(clock) as log, Worker(settings, edge, log, redis, clock) as worker:
            yield {"worker": worker.address, "pid": str(os.getpid())}
    finally:
        await redis.aclose()
