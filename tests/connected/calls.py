"""An open-loop client for fault tests: sends each call at its instant, whatever happens to those before, and keeps how each one ended.

It shares no code with the load generator, so that it cannot share its mistakes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
import grpc.aio

from moedge.v1 import inference_pb2, inference_pb2_grpc
from services.runtime.clock import SystemClock
from services.runtime.net import open_stream
from services.tasks.values import TaskItem
from tests.connected.ledger import OK, Call


@dataclass(slots=True)
class InFlight:
    """What has been read of a call that runs."""

    edge_id: str = ""
    num_tokens: int = 0


@dataclass(slots=True)
class Calls:
    """Calls of one name through one channel. `send` may be called again: numbers go on."""

    channel: grpc.aio.Channel
    name: str
    deadline_s: float
    sent: list[str] = field(default_factory=list)
    ended: list[Call] = field(default_factory=list)
    in_flight: dict[str, InFlight] = field(default_factory=dict)
    clock: SystemClock = field(default_factory=SystemClock)

    async def send(self, items: Sequence[TaskItem], at_s: Sequence[float]) -> None:
        """Item n goes out `at_s[n]` seconds from now; returns when every call has ended."""
        start_at_s = self.clock.now_s()
        async with asyncio.TaskGroup() as group:
            for item, offset_s in zip(items, at_s, strict=True):
                await self.clock.sleep(max(start_at_s + offset_s - self.clock.now_s(), 0.0))
                call_id = f"{self.name}-{len(self.sent)}"
                self.sent.append(call_id)
                group.create_task(self._one(call_id, item))

    @property
    def failed(self) -> list[Call]:
        return [call for call in self.ended if call.status != OK]

    async def _one(self, call_id: str, item: TaskItem) -> None:
        sent_at_s = self.clock.now_s()
        told = self.in_flight[call_id] = InFlight()
        answer: list[str] = []
        summary: inference_pb2.Summary | None = None
        status, task_id = OK, ""
        request = inference_pb2.GenerateRequest(prompt=item.prompt, user_id=call_id, task_type=item.task_type, alpha=0.5)
        inference = inference_pb2_grpc.InferenceServiceStub(self.channel)
        try:
            async with open_stream(inference.Generate(request, timeout=self.deadline_s)) as stream:
                async for response in stream:
                    event = response.WhichOneof("event")
                    if summary is not None:
                        status = "MORE_AFTER_SUMMARY"
                    if event == "accepted":
                        task_id, told.edge_id = response.accepted.task_id, response.accepted.edge_id
                    elif event == "token":
                        answer.append(response.token.text)
                        told.num_tokens += 1
                    elif event == "restarted":
                        answer.clear()
                        told.edge_id, told.num_tokens = response.restarted.edge_id, 0
                    elif event == "summary":
                        summary = response.summary
            if summary is None:
                status = "NO_SUMMARY"
        except grpc.aio.AioRpcError as error:
            status = error.code().name
        del self.in_flight[call_id]
        last = summary or inference_pb2.Summary()
        self.ended.append(
            Call(
                call_id,
                sent_at_s,
                sent_at_s + self.deadline_s,
                self.clock.now_s(),
                status,
                last.task_id or task_id,
                last.edge_id,
                last.version,
                last.attempts,
                item.item_id,
                "".join(answer),
                last.text,
            )
        )
