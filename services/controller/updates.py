"""One update of one edge, from the engine's request to the version served: build at the merger, roll out at the worker, tell everyone.

Whatever fails, the old model goes on serving and the engine asks again after a back-off.
"""

from __future__ import annotations

import logging

from moedge.v1 import merger_pb2, worker_pb2
from services.controller.clients import MergerClient, build_request, load_version
from services.controller.edge_states import EdgeStates
from services.controller.merge_events import MergeEvents
from services.controller.metrics import ControllerMetrics
from services.controller.settings import ControllerSettings
from services.core.merging.engine import MergeRequest
from services.core.merging.errors import MergingError
from services.core.merging.gain import expected_gain
from services.runtime.clock import Clock
from services.runtime.codec import frequencies_to_rows
from services.runtime.net import PLAINTEXT, Network
from services.runtime.status import RpcFailure
from services.runtime.tracing import Tracer

logger = logging.getLogger(__name__)

REGISTRY_LAG_S = 5.0


class Updates:
    """Runs updates. At most one an edge at a time is the caller's promise; `phase` says how far each has come."""

    def __init__(
        self,
        settings: ControllerSettings,
        states: EdgeStates,
        merger: MergerClient,
        events: MergeEvents,
        metrics: ControllerMetrics,
        tracer: Tracer,
        clock: Clock,
        network: Network = PLAINTEXT,
    ) -> None:
        self._settings = settings
        self._states = states
        self._merger = merger
        self._events = events
        self._metrics = metrics
        self._tracer = tracer
        self._clock = clock
        self._network = network
        self.phase: dict[str, str] = {}
        self._left: dict[str, tuple[str, float]] = {}
        self.num_done: dict[str, int] = {}
        self.last_error: dict[str, str] = {}

    async def run(self, request: MergeRequest, entry: worker_pb2.EdgeEntry) -> None:
        edge_id = request.edge_id
        try:
            with self._tracer.span("update", attributes={"edge_id": edge_id, "reason": request.reason}):
                await self._update(request, entry)
            self.last_error.pop(edge_id, None)
        except RpcFailure as failure:
            await self._failed(request, f"{self.phase[edge_id]}: {failure.code.name} {failure.reason}: {failure.message}")
        except MergingError as error:
            await self._failed(request, f"{self.phase[edge_id]}: {error}")
        finally:
            self.phase.pop(edge_id, None)

    def just_left(self, edge_id: str, version: str) -> bool:
        """The registry may show the version before an update for a moment after it; that is no change of version."""
        left, until_s = self._left.get(edge_id, ("", 0.0))
        return version == left and self._clock.now_s() < until_s

    async def adopt(self, entry: worker_pb2.EdgeEntry) -> None:
        """Take over what an edge serves already: its first version, or one that it changed to without us."""
        try:
            manifest = await self._merger.manifest(entry.version, self._settings.manifest_timeout_s)
            await self._states.deployed(entry.edge_id, manifest)
            self.last_error.pop(entry.edge_id, None)
            logger.info("%s serves %s", entry.edge_id, entry.version)
        except (RpcFailure, MergingError) as error:
            if self.last_error.get(entry.edge_id) != str(error):
                logger.warning("no manifest of %s, which %s serves: %s", entry.version, entry.edge_id, error)
            self.last_error[entry.edge_id] = str(error)

    async def _update(self, request: MergeRequest, entry: worker_pb2.EdgeEntry) -> None:
        edge_id, engine = request.edge_id, self._states.engine
        about = {"activation_shift": request.shift, "mix": dict(request.mix), "residual": request.residual}
        self.phase[edge_id] = "build"
        self._publish("requested", request, version=request.present_version, reason=request.reason, **about)
        await self._states.save(edge_id)
        started_at_s = self._clock.now_s()
        manifest = await self._merger.build(_build_request(self._settings, request, entry), self._settings.build_timeout_s)
        if reason := self._not_worth_it(request, entry, manifest):
            engine.satisfied(edge_id, self._clock.now_s())
            self._publish("kept", request, version=request.present_version, reason=reason, **about)
            await self._states.save(edge_id)
            return
        build_s = self._clock.now_s() - started_at_s
        self._metrics.built(build_s)
        self._publish("built", request, version=manifest.version, reason=request.reason, build=build_s, **about)
        self.phase[edge_id] = "load"
        report = await load_version(entry.address, manifest.version, self._settings.load_timeout_s, self._network)
        self._left[edge_id] = (request.present_version, self._clock.now_s() + REGISTRY_LAG_S)
        await self._states.deployed(edge_id, manifest, request.frequencies if request.raw else None)
        self._metrics.swapped(report)
        self.num_done[edge_id] = self.num_done.get(edge_id, 0) + 1
        self._publish("swapped", request, version=manifest.version, reason=request.reason, swap=report, build=build_s, **about)
        logger.info("%s serves %s instead of %s: %s", edge_id, manifest.version, request.present_version, request.reason)

    def _not_worth_it(self, request: MergeRequest, entry: worker_pb2.EdgeEntry, manifest: merger_pb2.Manifest) -> str:
        """Why the built version is not rolled out; empty when it is. The paper's rule rolls out whatever it asked for."""
        if manifest.version == request.present_version:
            return "same version"
        gain = expected_gain(request.mix, entry.quality, manifest.quality)
        if request.raw or self._settings.mode == "paper" or gain is None:
            return ""
        return f"gains {gain:.3f} in quality, min_gain is {self._settings.min_gain:g}" if gain < self._settings.min_gain else ""

    async def _failed(self, request: MergeRequest, reason: str) -> None:
        self.last_error[request.edge_id] = reason
        self._states.engine.failed(request.edge_id, self._clock.now_s())
        fields = {"activation_shift": request.shift, "mix": dict(request.mix), "residual": request.residual}
        self._publish("failed", request, version=request.present_version, reason=reason, **fields)
        logger.warning("update of %s failed, %s goes on serving: %s", request.edge_id, request.present_version, reason)
        await self._states.save(request.edge_id)

    def _publish(self, kind: str, request: MergeRequest, **fields: object) -> None:
        interval_s = self._states.engine.interval_s(request.edge_id)
        self._events.publish(kind, request.edge_id, check_interval=interval_s, **fields)


def _build_request(settings: ControllerSettings, request: MergeRequest, entry: worker_pb2.EdgeEntry) -> merger_pb2.BuildModelRequest:
    made = build_request(settings, entry, request.mix, request.present_version if settings.keep_present else "")
    if request.raw:
        made.raw_frequencies.extend(frequencies_to_rows(request.frequencies))
    return made
