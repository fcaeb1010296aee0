"""Runs an edge worker as a process: settings from the environment, the edge from its edges file, until signalled."""

from __future__ import annotations

import asyncio
import logging
import sys

import torch

from services.model.errors import ModelError
from services.runtime.adapters import open_event_log
from services.runtime.clock import SystemClock
from services.runtime.errors import RuntimeFault
from services.runtime.lifecycle import serve_until_signalled
from services.runtime.logs import configure
from services.runtime.store import open_redis
from services.worker.joining import chosen_edge, joined
from services.worker.service import Worker
from services.worker.settings import WorkerSettings

logger = logging.getLogger(__name__)


async def run(settings: WorkerSettings) -> None:
    clock = SystemClock()
    edge = chosen_edge(settings)
    settings = await joined(settings, edge.name, clock)
    redis = open_redis(settings.redis_url)
    try:
        async with open_event_log(settings, clock, client_id=f"moedge-worker-{edge.name}") as log:
            worker = Worker(settings, edge, log, redis, clock)
            await serve_until_signalled(worker, on_ready=lambda w: logger.info("edge %s on %s", edge.name, w.address), name="worker")
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
