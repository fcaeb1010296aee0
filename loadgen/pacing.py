"""Open-loop pacing: hands out each planned task at its intended instant. Sends nothing itself, and never looks at what became of a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from services.core.workload.load import PlannedTask
from services.runtime.clock import Clock


async def paced(plan: Sequence[PlannedTask], start_at_s: float, clock: Clock, send: Callable[[PlannedTask], object]) -> None:
    """Call `send` (which must return at once) for each task of `plan`, in order of time.

    Every wait is computed from `start_at_s`: a late wake-up delays one send, not those after it.
    """
    for planned in plan:
        await clock.sleep(max(start_at_s + planned.at_s - clock.now_s(), 0.0))
        send(planned)
