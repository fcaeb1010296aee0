"""Waiting for what another task brings about, with a limit: tests poll a condition instead of sleeping for a guess."""

from __future__ import annotations

from collections.abc import Callable

from services.runtime.clock import SystemClock


async def until(condition: Callable[[], bool], timeout_s: float = 30.0, what: str = "the condition") -> None:
    clock = SystemClock()
    end_at_s = clock.now_s() + timeout_s
    while not condition():
        if clock.now_s() > end_at_s:
            raise AssertionError(f"{what} did not come true within {timeout_s} s")
        await clock.sleep(0.01)
