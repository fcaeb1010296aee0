"""What an edge worker tells the others about itself: its registry entry, renewed every half second and at every change."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from moedge.v1 import worker_pb2
from services.runtime.clock import Clock
from services.runtime.codec import duration, link_to_proto, step_times_to_proto
from services.runtime.edges import EdgeConfig
from services.runtime.store import EdgeRegistry
from services.worker.batch_loop import BatchLoop
from services.worker.updates import Updater


class Presence:
    """`is_stuck` keeps a worker whose batch stands still out of the registry: its entry runs out by itself."""

    def __init__(
        self,
        edge: EdgeConfig,
        address: str,
        epoch: str,
        device: str,
        budget_bytes: int,
        max_prompt_tokens: int,
        max_new_tokens: int,
        loop: BatchLoop,
        updater: Updater,
        is_stuck: Callable[[], bool],
    ) -> None:
        self._fixed = worker_pb2.EdgeEntry(
            edge_id=edge.name,
            address=address,
            links={region: link_to_proto(link) for region, link in edge.regions.items()},
            max_batch=edge.max_batch,
            max_queue=edge.max_queue,
            memory_bytes=budget_bytes,
            speed=edge.speed,
            device=device,
            max_prompt_tokens=max_prompt_tokens,
            max_new_tokens=max_new_tokens,
            epoch=epoch,
        )
        self._loop = loop
        self._updater = updater
        self._is_stuck = is_stuck
        self._sequence = 0
        self.draining = False

    def entry(self) -> worker_pb2.EdgeEntry:
        updater, manifest = self._updater, self._updater.present
        entry = worker_pb2.EdgeEntry()
        entry.CopyFrom(self._fixed)
        entry.base_model = manifest.base_model
        entry.version = manifest.version
        entry.previous_version = updater.previous.version if updater.previous is not None else ""
        entry.model_bytes = manifest.model_bytes
        entry.quality.update(manifest.quality)
        entry.mix.update(manifest.mix)
        entry.step_times.CopyFrom(step_times_to_proto(self._loop.step_times.value()))
        entry.pinned = updater.pinned
        entry.updates = updater.num_updates
        entry.sequence = self._sequence
        entry.state = worker_pb2.EDGE_STATE_READY
        unavailable_s = updater.unavailable_s
        if unavailable_s is not None:
            entry.state = worker_pb2.EDGE_STATE_UPDATING
            entry.unavailable.CopyFrom(duration(unavailable_s))
        if self.draining:
            entry.state = worker_pb2.EDGE_STATE_DRAINING
        return entry

    async def publish(self, registry: EdgeRegistry) -> None:
        self._sequence += 1
        await registry.put(self.entry())

    async def run(self, registry: EdgeRegistry, clock: Clock, interval_s: float) -> None:
        while True:
            self._updater.changed.clear()
            if not self._is_stuck():
                await self.publish(registry)
            waits = {asyncio.ensure_future(clock.sleep(interval_s)), asyncio.ensure_future(self._updater.changed.wait())}
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
