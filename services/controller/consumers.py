"""What the controller reads from the event log: activation reports. Unreadable and impossible ones go to the dead-letter topic."""

from __future__ import annotations

import logging

from services.controller.edge_states import EdgeStates
from services.controller.metrics import ControllerMetrics
from services.core.merging.errors import CountsError
from services.runtime.clock import Clock
from services.runtime.codec import report_to_window
from services.runtime.eventlog import PoisonRecordError, Record
from services.runtime.events import read_activations

logger = logging.getLogger(__name__)


class ActivationConsumer:
    """Delivery is at least once; a report counts once."""

    def __init__(self, states: EdgeStates, metrics: ControllerMetrics, clock: Clock) -> None:
        self._states = states
        self._metrics = metrics
        self._clock = clock

    async def handle(self, record: Record) -> None:
        report = read_activations(record)
        if not report.edge_id or not report.version:
            raise PoisonRecordError("an activation report without edge_id or version")
        try:
            window = report_to_window(report, self._clock.now_s())
            counted = await self._states.observe(window, report.event_id)
        except (CountsError, ValueError) as error:
            raise PoisonRecordError(f"activation report {report.event_id}: {error}") from error
        self._metrics.reported(counted)
        logger.debug("report %s of %s: %s", report.event_id, report.version, "counted" if counted else "not counted")
