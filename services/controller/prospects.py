"""What edges could be merged for and what that would score, for triggers that look at the whole fleet.

A score is measured on a built model, so every prospect is a build at the merger: one at a time, single task types for every size of memory
before pairs for any. The merger keeps its builds; after a restart they come back at once.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from moedge.v1 import worker_pb2
from services.controller.clients import MergerClient, build_request
from services.controller.settings import ControllerSettings
from services.core.merging.engine import MergeEngine
from services.core.merging.fleet import EdgeService, Prospect, candidate_mixes
from services.runtime.codec import link_from_proto, step_times_from_proto
from services.runtime.status import RpcFailure

logger = logging.getLogger(__name__)

Size = tuple[str, int]  # base model, bytes of memory


class Prospects:
    def __init__(self, settings: ControllerSettings, merger: MergerClient, engine: MergeEngine) -> None:
        self._settings = settings
        self._merger = merger
        self._engine = engine
        self._known: dict[Size, list[Prospect]] = {}
        self._output_tokens: dict[str, float] = {}  # mean over task types, by base model
        self._last_error = ""
        self._failures: dict[Size, int] = {}  # in a row

    async def look(self, entries: Mapping[str, worker_pb2.EdgeEntry]) -> float:
        """Tell the engine what is known of every edge and learn one thing more. Returns the seconds until the next look: a failure
        makes them longer each time, since what the merger refuses once it mostly refuses again."""
        for edge_id in self._engine.edges:
            entry = entries.get(edge_id)
            self._engine.describe(edge_id, self._service(entry) if entry is not None else None)
        settings, failures = self._settings, self._failures
        missing = [(entry, mix) for _, entry in sorted(entries.items()) if (mix := self._missing(entry))]
        if not missing:
            return settings.backoff_s
        entry, mix = min(missing, key=lambda found: (failures.get(_size(found[0]), 0), len(found[1])))
        if await self._learn(entry, mix):
            failures.pop(_size(entry), None)
            return settings.tick_s
        failures[_size(entry)] = times = failures.get(_size(entry), 0) + 1
        return min(settings.backoff_s * 2.0 ** (times - 1), settings.backoff_cap_s)

    def _missing(self, entry: worker_pb2.EdgeEntry) -> Mapping[str, float] | None:
        known = self._known.get(_size(entry), [])
        return next((mix for mix in candidate_mixes(sorted(entry.quality)) if all(p.mix != mix for p in known)), None)

    async def _learn(self, entry: worker_pb2.EdgeEntry, mix: Mapping[str, float]) -> bool:
        """False when the merger cannot or will not build it."""
        settings = self._settings
        try:
            if entry.base_model not in self._output_tokens:
                tokens = await self._merger.output_tokens(entry.base_model, settings.manifest_timeout_s)
                self._output_tokens[entry.base_model] = sum(tokens.values()) / max(len(tokens), 1)
            manifest = await self._merger.build(build_request(settings, entry, mix), settings.build_timeout_s)
        except RpcFailure as failure:
            if self._last_error != str(failure):
                logger.warning("no prospects of %s: %s %s", entry.edge_id, failure.code.name, failure.message)
            self._last_error = str(failure)
            return False
        self._last_error = ""
        self._known.setdefault(_size(entry), []).append(Prospect(dict(mix), dict(manifest.quality)))
        return True

    def _service(self, entry: worker_pb2.EdgeEntry) -> EdgeService | None:
        """None where the edge serves nobody, or how is not known. A swap is made beside the model that serves and takes nobody's time."""
        times = step_times_from_proto(entry.step_times)
        serving = entry.state in (worker_pb2.EDGE_STATE_READY, worker_pb2.EDGE_STATE_UPDATING)
        if not serving or entry.base_model not in self._output_tokens or times.step_base_s + times.step_row_s <= 0.0:
            return None
        return EdgeService.of_usual_tasks(
            prefill_base_s=times.prefill_base_s,
            step_base_s=times.step_base_s,
            step_row_s=times.step_row_s,
            output_tokens=self._output_tokens[entry.base_model],
            slots=max(entry.max_batch, 1),
            downtime_s=0.0,
            prospects=self._known.get(_size(entry), ()),
            links={region: link_from_proto(link) for region, link in sorted(entry.links.items())},
        )


def _size(entry: worker_pb2.EdgeEntry) -> Size:
    return entry.base_model, entry.memory_bytes
