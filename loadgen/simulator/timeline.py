"""What happens next in virtual time: events keyed (at_s, priority, seq), so that equal instants always happen in the same order."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from enum import IntEnum
from typing import Any

Handler = Callable[[Any, float], None]
Event = tuple[float, int, int, Handler, Any]


class Priority(IntEnum):
    """At the same instant slots free before reports are made, reports before checks, and all of that before tasks come."""

    TURN = 0
    UPDATE = 1
    REPORT = 2
    CHECK = 3
    AT_EDGE = 4  # a prompt has travelled
    ARRIVAL = 5  # a user sends a task


class Timeline:
    def __init__(self) -> None:
        self.heap: list[Event] = []
        self._seq = 0

    def at(self, at_s: float, priority: int, handler: Handler, argument: Any) -> None:
        """`handler(argument, at_s)` will be called then."""
        self._seq += 1
        heapq.heappush(self.heap, (at_s, priority, self._seq, handler, argument))
