"""A merger and workers over the pico checkpoint on loopback, with an event log and a Redis inside the process."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from pathlib import Path

from moedge.v1 import inference_pb2, inference_pb2_grpc, merger_pb2, merger_pb2_grpc, worker_pb2_grpc
from services.core.offload.values import Link
from services.merger.service import Merger
from services.merger.settings import MergerSettings
from services.model.blob_store import BlobStore
from services.runtime.clock import SystemClock
from services.runtime.edges import EdgeConfig
from services.runtime.eventlog_memory import MemoryEventLog
from services.runtime.events import kind_word, read_task
from services.runtime.net import channel
from services.runtime.store import open_redis
from services.worker.service import Worker
from services.worker.settings import WorkerSettings
from tests.unit.pico import pico_tasks, write_pico_checkpoint

PROMPT = "w1 w2 w3"


def write_tasks(path: Path) -> Path:
    rows = [
        {"task": item.task_type, "id": item.item_id, "prompt": item.prompt, "references": list(item.references)}
        for item in pico_tasks().items
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def merger_settings(directory: Path, **overrides) -> MergerSettings:
    model = directory / "model"
    if not model.exists():
        write_pico_checkpoint(model)
        write_tasks(directory / "tasks.jsonl")
    settings = dict(
        model=str(model), tasks=str(directory / "tasks.jsonl"), cache_dir=directory / "merger", device="cpu", profiled_items=8,
        measured_items=4, drain_s=1.0,
    )  # fmt: skip
    return MergerSettings(**{**settings, **overrides})


@asynccontextmanager
async def running_merger(directory: Path, **overrides):
    async with Merger(merger_settings(directory, **overrides), SystemClock()) as merger:
        yield merger


def budget_of(merger: Merger, num_experts: int) -> int:
    """Memory for everything else and so many experts, half an expert to spare."""
    base = merger.builder.base
    experts = sum(stack.num_bytes() for stack in base.model.experts)
    total = sum(stack.num_kept for stack in base.model.experts)
    return base.full_bytes - experts + int((num_experts + 0.5) * experts / total)


def make_edge(memory_bytes: int, **overrides) -> EdgeConfig:
    settings = dict(
        name="small", regions={"west": Link(0.0, 1e9, 1e9)}, memory_bytes=memory_bytes, device="cpu", max_batch=2, max_queue=64,
        initial_mix={"left": 1.0},
    )  # fmt: skip
    return EdgeConfig(**{**settings, **overrides})


class Site:
    """A running worker with what tests look at."""

    def __init__(self, worker: Worker, log: MemoryEventLog, redis, grpc_channel) -> None:
        self.worker = worker
        self.log = log
        self.redis = redis
        self.inference = inference_pb2_grpc.InferenceServiceStub(grpc_channel)
        self.control = worker_pb2_grpc.WorkerServiceStub(grpc_channel)

    async def answer(self, prompt: str = PROMPT, timeout_s: float = 20, **fields):
        """The summary of one task."""
        request = inference_pb2.GenerateRequest(prompt=prompt, **{"max_tokens": 6, **fields})
        responses = [response async for response in self.inference.Generate(request, timeout=timeout_s)]
        assert responses[-1].WhichOneof("event") == "summary"
        return responses[-1].summary

    async def task_events(self) -> list[tuple[str, str]]:
        return [(kind_word(event), event.event_id) for event in await self.events()]

    async def events(self):
        return [read_task(record) async for record in self.log.read_all("moedge.task-events.v1")]


@asynccontextmanager
async def running_site(directory: Path, merger_address: str | None, edge: EdgeConfig, *, log=None, redis=None, **overrides):
    clock = SystemClock()
    log = log or MemoryEventLog(clock)
    own_redis = redis or open_redis(None)
    settings = WorkerSettings(**{"merger_address": merger_address, "cache_dir": directory / "worker", "drain_s": 2.0, **overrides})
    try:
        async with Worker(settings, edge, log, own_redis, clock) as worker, channel(worker.address) as grpc_channel:
            yield Site(worker, log, own_redis, grpc_channel)
    finally:
        if redis is None:
            await own_redis.aclose()


async def built(merger: Merger, mix, budget_bytes: int, **fields):
    """The manifest of a build asked for over gRPC."""
    async with channel(merger.address) as grpc_channel:
        stub = merger_pb2_grpc.MergerServiceStub(grpc_channel)
        request = merger_pb2.BuildModelRequest(mix=mix, budget_bytes=budget_bytes, **fields)
        return [response async for response in stub.BuildModel(request, timeout=60)][-1].manifest


async def eventually(condition, timeout_s: float = 10.0):
    """Wait until the (async) condition gives something true."""
    clock = SystemClock()
    async with asyncio.timeout(timeout_s):
        while not (result := await condition()):
            await clock.sleep(0.02)
        return result


def copied(source: BlobStore, directory: Path, digests) -> BlobStore:
    """A worker's store, filled over the download path in small chunks."""
    target = BlobStore(directory, 1 << 30)
    for digest in target.missing(digests):
        while chunk := source.read_chunk(digest, target.staged_bytes(digest), 1500):
            target.append(digest, target.staged_bytes(digest), chunk)
        target.commit(digest, source.size_bytes(digest))
    return target
