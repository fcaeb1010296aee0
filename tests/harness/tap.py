"""A Kafka tap: every record of the event topics, read from the beginning by a consumer of no group in a container inside the network.

Kafka advertises itself as `kafka:9092`, which only containers can resolve; so an idle container of the services' own image is kept beside
the stack, and each read runs `dump_topics.py` in it. It removes itself should nobody else.
"""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from docker.models.containers import Container

from moedge.v1 import events_pb2
from services.runtime.eventlog import ACTIVATIONS, MERGE_EVENTS, TASK_EVENTS
from tests.harness.compose import NETWORK, ComposeStack

IMAGE = "moedge/services"
SCRIPT = Path(__file__).with_name("dump_topics.py")
TOPICS = (TASK_EVENTS, ACTIVATIONS, MERGE_EVENTS)
LIVES_S = 3600
READ_S = 30


class TapError(Exception):
    """Kafka could not be read now."""


@dataclass(slots=True)
class Tap:
    """What was read is kept; each read brings what came since."""

    container: Container
    bootstrap: str = "kafka:9092"
    values: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    _positions: dict[str, dict[str, int]] = field(default_factory=lambda: {topic: {} for topic in TOPICS})

    @property
    def task_events(self) -> list[events_pb2.TaskEvent]:
        return [events_pb2.TaskEvent.FromString(value) for value in self.values[TASK_EVENTS]]

    @property
    def reports(self) -> list[events_pb2.ActivationReport]:
        return [events_pb2.ActivationReport.FromString(value) for value in self.values[ACTIVATIONS]]

    @property
    def merges(self) -> list[events_pb2.MergeEvent]:
        return [events_pb2.MergeEvent.FromString(value) for value in self.values[MERGE_EVENTS]]

    async def read(self) -> None:
        """Raises `TapError` where Kafka does not answer; nothing is lost by that."""
        command = ["timeout", str(READ_S), "python", "-c", SCRIPT.read_text(), self.bootstrap, json.dumps(self._positions)]
        code, output = await asyncio.to_thread(self.container.exec_run, command, demux=True)
        out, err = output
        lines = [json.loads(line) for line in (out or b"").splitlines()]
        if code or not lines or "ends" not in lines[-1]:
            raise TapError(f"reading Kafka ended with {code}: {(err or b'').decode()[-500:]}")
        for line in lines[:-1]:
            self.values[line["topic"]].append(base64.b64decode(line["value"]))
        for topic, partition, offset in lines[-1]["ends"]:
            self._positions[topic][str(partition)] = offset


@contextmanager
def open_tap(stack: ComposeStack) -> Iterator[Tap]:
    container = stack.engine.containers.run(
        IMAGE,
        [str(LIVES_S)],
        entrypoint="sleep",
        name=f"{NETWORK}-tap-{uuid.uuid4().hex[:8]}",
        network=NETWORK,
        detach=True,
        auto_remove=True,
        init=True,
    )
    try:
        yield Tap(container)
    finally:
        container.kill()
