"""The merge engine with its memory: each change of an edge's state is written to the trigger store, and read back after a restart.

Reports are counted once: ids of the newest ones are kept beside the state they went into, so a redelivery after a crash is noticed.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moedge.v1 import merger_pb2
from services.core.merging.engine import MergeEngine
from services.core.merging.errors import MergingError
from services.core.merging.values import ActivationWindow, Frequencies
from services.runtime.clock import Clock
from services.runtime.codec import manifest_frequencies, manifest_profiles
from services.runtime.store import TriggerStore

logger = logging.getLogger(__name__)

SEEN_PER_EDGE = 256
FORMAT = 1


class EdgeStates:
    """Reads and writes around one engine. Nothing here fails when Redis is away; then only this process remembers."""

    def __init__(self, engine: MergeEngine, store: TriggerStore, clock: Clock) -> None:
        self.engine = engine
        self._store = store
        self._clock = clock
        self._seen: dict[str, deque[str]] = {}
        self._asked_store: set[str] = set()

    async def known(self, edge_id: str) -> bool:
        """Whether the engine has state of this edge, from the store if need be (looked up once per edge)."""
        if self.engine.deployed_version(edge_id) is not None:
            return True
        if edge_id in self._asked_store:
            return False
        saved = await self._store.get(edge_id)
        if self.engine.deployed_version(edge_id) is not None:  # another task was faster
            return True
        self._asked_store.add(edge_id)
        return saved is not None and self._restored(edge_id, saved)

    async def deployed(self, edge_id: str, manifest: merger_pb2.Manifest, reference: Frequencies | None = None) -> None:
        """The edge serves the manifest's version. `reference` stands in for its frequencies (paper mode: those it was built from)."""
        frequencies = manifest_frequencies(manifest) if reference is None else reference
        profiles = profiles_per_task(manifest)
        mix, quality = dict(manifest.mix), dict(manifest.quality)
        self.engine.deployed(edge_id, manifest.version, frequencies, profiles, mix, self._clock.now_s(), quality)
        await self.save(edge_id)

    async def observe(self, window: ActivationWindow, event_id: str) -> bool:
        """Count a report; False for a duplicate, an unknown edge or another version than the deployed one."""
        if not await self.known(window.edge_id):
            return False
        seen = self._seen.setdefault(window.edge_id, deque(maxlen=SEEN_PER_EDGE))
        if event_id in seen:
            return False
        seen.append(event_id)
        counted = self.engine.observe(window, self._clock.now_s())
        if counted:
            await self.save(window.edge_id)
        return counted

    async def save(self, edge_id: str) -> None:
        document = {
            "format": FORMAT,
            "seen": list(self._seen.get(edge_id, ())),
            "engine": self.engine.dump(edge_id, self._clock.now_s()).decode(),
        }
        await self._store.put(edge_id, json.dumps(document, separators=(",", ":")).encode())

    def forget(self, edge_id: str) -> None:
        self.engine.forget(edge_id)
        self._seen.pop(edge_id, None)
        self._asked_store.discard(edge_id)

    def _restored(self, edge_id: str, saved: bytes) -> bool:
        """State that cannot be read (another format, another trigger) is as good as none: the edge restarts from its manifest."""
        try:
            document = json.loads(saved)
            seen = [str(event_id) for event_id in document["seen"]]
            self.engine.restore(edge_id, str(document["engine"]).encode(), self._clock.now_s())
        except (ValueError, KeyError, TypeError, MergingError) as error:
            logger.warning("%s starts from its manifest: %s", edge_id, error)
            return False
        self._seen[edge_id] = deque(seen, maxlen=SEEN_PER_EDGE)
        logger.info("%s goes on from its saved state: version %s", edge_id, self.engine.deployed_version(edge_id))
        return True


def profiles_per_task(manifest: merger_pb2.Manifest) -> Mapping[str, NDArray[np.float64]]:
    """Expected counts of one task by task type; plain frequencies where the manifest has no tokens per task."""
    profiles = manifest_profiles(manifest)
    tokens = {t: np.array(manifest.profiles[t].tokens_per_task, dtype=np.float64) for t in profiles}
    if any(len(tokens[t]) != len(profiles[t]) for t in profiles):
        return profiles
    return {t: profile * tokens[t][:, None] for t, profile in profiles.items()}
