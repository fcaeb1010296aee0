"""Runs the merge controller as a process: settings from the environment, Kafka and Redis where they are named, until signalled."""

from __future__ import annotations

import asyncio
import logging
import sys

from services.controller.service import Controller
from services.controller.settings import ControllerSettings
from services.runtime.adapters import open_event_log
from services.runtime.clock import SystemClock
from services.runtime.errors import SettingsError
from services.runtime.lifecycle import serve_until_signalled
from services.runtime.logs import configure
from services.runtime.net import Network
from services.runtime.security import read_security
from services.runtime.store import open_redis

logger = logging.getLogger(__name__)


async def run(settings: ControllerSettings) -> None:
    network = Network(read_security(settings, "controller"))
    clock = SystemClock()
    redis = open_redis(settings.redis_url)
    try:
        async with open_event_log(settings, clock, client_id="moedge-controller") as log:
            controller = Controller(settings, log, redis, clock, network)
            await serve_until_signalled(controller, on_ready=lambda c: logger.info("controller on %s", c.address), name="controller")
    finally:
        await redis.aclose()


def main() -> None:
    try:
        settings = ControllerSettings.load()
        configure(settings.log_format, settings.log_level)
        asyncio.run(run(settings))
    except SettingsError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
