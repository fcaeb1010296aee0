"""Runs builds one at a time on a thread that yields the processor to serving. Equal requests share one build; its progress goes to all.

What a build consists of is `services.model.build`'s business, what may be asked for the servicer's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc

from services.merger.metrics import MergerMetrics
from services.model.build import BuildOptions, Progress
from services.model.manifest import ModelManifest
from services.runtime.clock import Clock
from services.runtime.failpoints import NO_FAILPOINT, Failpoint
from services.runtime.status import RpcFailure, draining

logger = logging.getLogger(__name__)


class ModelBuilder(Protocol):
    """The part of `services.model.build.Builder` that is run here."""

    def build(
        self, mix: Mapping[str, float], budget_bytes: int, options: BuildOptions | None = None, progress: Progress | None = None
    ) -> ModelManifest: ...


@dataclass(frozen=True, slots=True)
class BuildRequest:
    mix: Mapping[str, float]
    budget_bytes: int
    options: BuildOptions

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for requests that get the same version."""
        options = self.options
        raw = None if options.raw_frequencies is None else options.raw_frequencies.tobytes()
        present = (options.present_version, options.keep_gain)
        named = (options.method, options.allocation, options.grouping, options.recovery_steps, *present)
        return (tuple(sorted(self.mix.items())), self.budget_bytes, named, raw)


@dataclass(frozen=True, slots=True)
class BuildPhase:
    phase: str
    fraction: float


@dataclass(slots=True)
class _Build:
    done: asyncio.Future[ModelManifest] = field(init=False)  # set once the thread has it, which may tell a phase before
    latest: BuildPhase = BuildPhase("waiting", 0.0)
    listeners: list[asyncio.Queue[BuildPhase]] = field(default_factory=list)


class Builds:
    def __init__(
        self,
        builder: ModelBuilder,
        executor: Executor,
        max_waiting: int,
        metrics: MergerMetrics,
        clock: Clock,
        failpoint: Failpoint = NO_FAILPOINT,
    ) -> None:
        self._builder = builder
        self._failpoint = failpoint
        self._executor = executor
        self._max_waiting = max_waiting
        self._metrics = metrics
        self._clock = clock
        self._running: dict[tuple[object, ...], _Build] = {}
        self._leaving = False

    @property
    def num_running(self) -> int:
        """Builds that run or wait."""
        return len(self._running)

    def leave(self) -> None:
        """The build that runs ends at its next phase."""
        self._leaving = True

    async def build(self, request: BuildRequest) -> AsyncGenerator[BuildPhase | ModelManifest, None]:
        """Phases as they begin, then the manifest. A caller that leaves does not end the build: what it makes is kept for the next."""
        build = self._running.get(request.key) or self._begin(request)
        phases: asyncio.Queue[BuildPhase] = asyncio.Queue()
        build.listeners.append(phases)
        try:
            yield build.latest
            async for phase in _until(phases, build.done):
                yield phase
            yield await asyncio.shield(build.done)
        finally:
            build.listeners.remove(phases)

    def _begin(self, request: BuildRequest) -> _Build:
        if len(self._running) >= self._max_waiting:
            message = f"{len(self._running)} builds wait already; ask again later"
            raise RpcFailure(grpc.StatusCode.RESOURCE_EXHAUSTED, "BUILDS_WAITING", message, retry_after_s=5.0)
        loop = asyncio.get_running_loop()

        def tell(phase: str, fraction: float) -> None:
            if self._leaving:
                raise draining("the merger is leaving: builds end here")
            loop.call_soon_threadsafe(_tell, build, BuildPhase(phase, fraction))
            self._failpoint.reached(phase)

        def run() -> ModelManifest:
            built = self._builder.build(request.mix, request.budget_bytes, request.options, tell)
            self._failpoint.reached("manifest")
            return built

        build = _Build()
        build.done = asyncio.ensure_future(loop.run_in_executor(self._executor, run))
        self._running[request.key] = build
        began_at_s = self._clock.now_s()
        build.done.add_done_callback(lambda done: self._end(request, done, self._clock.now_s() - began_at_s))
        return build

    def _end(self, request: BuildRequest, done: asyncio.Future[ModelManifest], lasted_s: float) -> None:
        del self._running[request.key]
        if done.cancelled():
            return
        error = done.exception()
        self._metrics.built(lasted_s) if error is None else self._metrics.failed(lasted_s)
        if error is not None:
            logger.info("build for %s in %d bytes failed: %s", dict(request.mix), request.budget_bytes, error)
        else:
            logger.info("built for %s in %d bytes", dict(request.mix), request.budget_bytes, extra={"version": done.result().version})


def _tell(build: _Build, phase: BuildPhase) -> None:
    build.latest = phase
    for listener in build.listeners:
        listener.put_nowait(phase)


async def _until(phases: asyncio.Queue[BuildPhase], done: asyncio.Future[ModelManifest]) -> AsyncIterator[BuildPhase]:
    """Phases until the build is done."""
    while not done.done():
        waiting = asyncio.ensure_future(phases.get())
        try:
            either: set[asyncio.Future[Any]] = {waiting, done}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not waiting.done():
                waiting.cancel()
        if waiting.done() and not waiting.cancelled():
            yield waiting.result()
