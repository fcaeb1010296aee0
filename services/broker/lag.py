"""How far the merge controller is behind in reading activation reports: looked up on a slow timer, told to whoever lists the edges."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from services.broker.settings import BrokerSettings
from services.runtime.clock import Clock
from services.runtime.eventlog import ACTIVATIONS, EventLog, EventLogUnavailableError, Lag
from services.runtime.lag import group_lag

logger = logging.getLogger(__name__)


class LagWatch:
    """`lags` is empty until the first answer, and again while Kafka does not answer."""

    def __init__(self, log: EventLog, settings: BrokerSettings, clock: Clock) -> None:
        self._log = log
        self._settings = settings
        self._clock = clock
        self._found: Sequence[Lag] = ()

    @property
    def lags(self) -> Sequence[Lag]:
        """An event log inside the process tells at once."""
        return self._log.lags if self._settings.kafka_bootstrap is None else self._found

    async def run(self) -> None:
        if self._settings.kafka_bootstrap is None:
            return
        while True:
            await self.look(self._settings.kafka_bootstrap)
            await self._clock.sleep(self._settings.lag_s)

    async def look(self, kafka_bootstrap: str) -> None:
        try:
            self._found = await group_lag(kafka_bootstrap, self._settings.controller_group, [ACTIVATIONS], self._clock)
        except EventLogUnavailableError as error:
            self._found = ()
            logger.debug("%s", error)
