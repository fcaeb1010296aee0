"""The controller's own events. They tell others what was decided; when the outbox is full, they give way and the decision stands."""

from __future__ import annotations

import logging
from typing import Any

from services.controller.metrics import ControllerMetrics
from services.runtime.eventlog import OutboxFullError
from services.runtime.events import EventWriter

logger = logging.getLogger(__name__)


class MergeEvents:
    def __init__(self, writer: EventWriter, metrics: ControllerMetrics) -> None:
        self._writer = writer
        self._metrics = metrics
        self.num_lost = 0

    def publish(self, kind: str, edge_id: str, **fields: Any) -> None:
        """`kind` and fields as in `EventWriter.merge`."""
        self._metrics.decided(kind)
        try:
            self._writer.merge(kind, edge_id, **fields)
        except OutboxFullError:
            self.num_lost += 1
            logger.warning("merge event %s of %s lost: the outbox is full", kind, edge_id)
