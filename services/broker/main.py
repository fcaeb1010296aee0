"""Starts a broker as a process: settings, adapters, run."""

from __future__ import annotations

import asyncio
import sys

from services.broker.service import Broker
from services.broker.settings import BrokerSettings
from services.runtime.adapters import open_event_log
from services.runtime.clock import SystemClock
from services.runtime.errors import RuntimeFault
from services.runtime.lifecycle import leave_to_live, serve_until_signalled
from services.runtime.logs import configure
from services.runtime.net import Network
from services.runtime.security import read_security
from services.runtime.store import open_redis


async def run(settings: BrokerSettings) -> None:
    network = Network(read_security(settings, "broker", tokens_file=settings.tokens_file))
    clock = SystemClock()
    redis = open_redis(settings.redis_url)
    try:
        async with open_event_log(settings, clock, client_id="moedge-broker") as log:
            broker = Broker(settings, log, redis, clock, network)
            await serve_until_signalled(broker, on_ready=lambda _: leave_to_live(), name="broker")
    finally:
        await redis.aclose()


def main() -> None:
    try:
        settings = BrokerSettings.load()
        configure(settings.log_format, settings.log_level)
        asyncio.run(run(settings))
    except (RuntimeFault, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
