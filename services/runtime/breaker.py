"""A circuit breaker: after some failures in a row no call is tried for a while, then one is."""

from __future__ import annotations

from services.runtime.clock import Clock


class Breaker:
    def __init__(self, clock: Clock, *, max_failures: int = 3, open_s: float = 1.0) -> None:
        self._clock = clock
        self._max_failures = max_failures
        self._open_s = open_s
        self._failures = 0
        self._closed_at_s = 0.0

    @property
    def allows(self) -> bool:
        """Whether a call may be tried. While open, one call is allowed each `open_s`."""
        return self._failures < self._max_failures or self._clock.now_s() >= self._closed_at_s

    @property
    def healthy(self) -> bool:
        return self._failures == 0

    def succeeded(self) -> None:
        self._failures = 0

    def failed(self) -> None:
        self._failures += 1
        self._closed_at_s = self._clock.now_s() + self._open_s
