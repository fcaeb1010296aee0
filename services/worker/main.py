"""Runs an edge worker as a process: settings from the environment, the edge from its edges file, until signalled."""

from __future__ import annotations

import asyncio
import logging
import sys
from dataclasses import replace

import torch

from services.model.errors import ModelError
from services.runtime.adapters import open_event_log
from services.runtime.clock import SystemClock
from services.runtime.errors import RuntimeFault
from services.runtime.lifecycle import serve_until_signalled
from services.runtime.logs import configure
from services.runtime.net import Network
from services.runtime.security import read_security
from services.runtime.store import open_redis
from services.worker.joining import chosen_edge, joined
from services.worker.model_bytes import resolved
from services.worker.replicas import number_of, own_name
from services.worker.service import Worker
from services.worker.settings import WorkerSettings

logger = logging.getLogger(__name__)


async def run(settings: WorkerSettings) -> None:
    clock = SystemClock()
    network = Network(read_security(settings, "worker", token_file=settings.join_token_file))
    described = chosen_edge(settings)
    called = settings.name or described.name
    with own_name(settings.cache_dir, called, replicas=settings.replicas, limit_bytes=settings.cache_limit_bytes) as name:
        settings = await joined(settings, name, clock, network)
        described_edge = await resolved(described, settings, settings.cache_dir.expanduser() / name, clock, network)
        number = described.number + number_of(name, called) * described.num_edges
        edge = replace(described_edge, name=name, device=settings.device or described_edge.device, number=number)
        redis = open_redis(settings.redis_url)
        try:
            async with open_event_log(settings, clock, client_id=f"moedge-worker-{name}") as log:
                worker = Worker(settings, edge, log, redis, clock, network)
                await serve_until_signalled(worker, on_ready=lambda w: logger.info("edge %s on %s", name, w.address), name="worker")
        finally:
            await redis.aclose()


def main() -> None:
    try:
        settings = WorkerSettings.load()
        configure(settings.log_format, settings.log_level)
        if settings.torch_threads:
            torch.set_num_threads(settings.torch_threads)
        asyncio.run(run(settings))
    except (RuntimeFault, ModelError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
