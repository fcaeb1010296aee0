"""Runs the cloud merger as a process: settings from the environment, until signalled."""

from __future__ import annotations

import asyncio
import logging
import sys

from services.core.merging.errors import MergingError
from services.merger.service import Merger
from services.merger.settings import MergerSettings
from services.model.errors import ModelError
from services.runtime.clock import SystemClock
from services.runtime.errors import RuntimeFault
from services.runtime.lifecycle import serve_until_signalled
from services.runtime.logs import configure
from services.runtime.net import Network
from services.runtime.security import read_security
from services.tasks.errors import TasksError

logger = logging.getLogger(__name__)


async def run(settings: MergerSettings) -> None:
    network = Network(read_security(settings, "merger"))
    merger = Merger(settings, SystemClock(), network)
    await serve_until_signalled(merger, on_ready=lambda m: logger.info("merger on %s", m.address), name="merger")


def main() -> None:
    try:
        settings = MergerSettings.load()
        configure(settings.log_format, settings.log_level)
        asyncio.run(run(settings))
    except (RuntimeFault, ModelError, MergingError, TasksError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
