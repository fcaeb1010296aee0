"""Time as a passed object: the system's clock, and a virtual one that tests drive. The only module that may read or wait on real time."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """`now_s` for durations (monotonic, of this process only), `wall` for stamps that people read, `sleep` to wait."""

    def now_s(self) -> float: ...

    def wall(self) -> datetime: ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    def now_s(self) -> float:
        return time.monotonic()

    def wall(self) -> datetime:
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))  # noqa: TID251  the one place that sleeps


class VirtualClock:
    """Stands still until `advance` moves it. Sleepers wake in order of their instant, first come first on ties."""

    def __init__(self, now_s: float = 0.0, wall: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._now_s = now_s
        self._origin = wall - timedelta(seconds=now_s)
        self._sleepers: list[tuple[float, int, asyncio.Event]] = []
        self._order = itertools.count()

    def now_s(self) -> float:
        return self._now_s

    def wall(self) -> datetime:
        return self._origin + timedelta(seconds=self._now_s)

    @property
    def num_sleepers(self) -> int:
        return len(self._sleepers)

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await self._settle()
            return
        sleeper = (self._now_s + seconds, next(self._order), asyncio.Event())
        heapq.heappush(self._sleepers, sleeper)
        try:
            await sleeper[2].wait()
        finally:
            if sleeper in self._sleepers:
                self._sleepers.remove(sleeper)
                heapq.heapify(self._sleepers)

    async def advance(self, seconds: float) -> None:
        """Move on by `seconds`, waking every sleeper that falls due, one at a time, at its own instant."""
        until_s = self._now_s + seconds
        await self._settle()
        while self._sleepers and self._sleepers[0][0] <= until_s:
            at_s, _, due = heapq.heappop(self._sleepers)
            self._now_s = max(self._now_s, at_s)
            due.set()
            await self._settle()
        self._now_s = until_s
        await self._settle()

    async def _settle(self) -> None:
        """Let whatever can run, run: a few turns of the loop cover a chain of callbacks."""
        for _ in range(10):
            await asyncio.sleep(0)  # noqa: TID251  a turn of the loop, not a wait
