"""An open-loop client for fault tests: sends each call at its instant, whatever happens to those before, and keeps how each one ended.

It shares no code with the load generator, so that it cannot share its mistakes. With `retrying` it does what the documentation tells a
user to do: UNAVAILABLE, RESOURCE_EXHAUSTED that says when to come back, and calls that a stopping server cut off, are sent again under
the same idempotency key while the deadline lasts; what was met on the way is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
import grpc.aio
import numpy as np

from moedge.v1 import inference_pb2, inference_pb2_grpc
from services.runtime.clock import SystemClock
from services.runtime.net import CHANNEL_OPTIONS, open_stream
from services.runtime.status import failure_of
from services.tasks.values import TaskItem
from tests.harness.history import OK, Call, Try, is_cut

FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 1.0  # before a retry whose refusal named no time
LEFT_S = 0.05  # of the deadline, below which a retry is pointless


def fleet_target(ports: Sequence[int], host: str = "127.0.0.1") -> str:
    """Every port that a broker may be published at: one that restarts may come back at another of them."""
    return "ipv4:" + ",".join(f"{host}:{port}" for port in ports)


def fleet_channel(target: str) -> grpc.aio.Channel:
    """To all addresses of the target in turn, those that refuse left out."""
    return grpc.aio.insecure_channel(target, options=[*CHANNEL_OPTIONS, ("grpc.lb_policy_name", "round_robin")])


@dataclass(slots=True)
class InFlight:
    """What has been read of a call that runs."""

    edge_id: str = ""
    num_tokens: int = 0


@dataclass(slots=True)
class _Answer:
    """What one RPC brought."""

    status: str = OK
    reason: str = ""
    retry_after_s: float | None = None
    accepted: bool = False
    task_id: str = ""
    texts: list[str] = field(default_factory=list)
    first_token_at_s: float | None = None
    summary: inference_pb2.Summary | None = None

    @property
    def may_be_retried(self) -> bool:
        if self.status == "RESOURCE_EXHAUSTED":
            return self.retry_after_s is not None
        return self.status == "UNAVAILABLE" or is_cut(self.status, self.reason, self.accepted)


@dataclass(slots=True)
class Calls:
    """Calls of one name through one channel. `send` may be called again: numbers go on."""

    channel: grpc.aio.Channel
    name: str
    deadline_s: float
    retrying: bool = False
    regions: Sequence[str] = ("",)  # of the users, in turn
    alpha: float = 0.5
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
                self._begin(group, item, start_at_s + offset_s)

    async def pour(
        self, items: Sequence[TaskItem], rate_per_s: float, rng: np.random.Generator, stop: asyncio.Event, burst: int = 1
    ) -> None:
        """Poisson arrivals of random items, `burst` at a time, until told to stop; returns when every call has ended."""
        at_s = self.clock.now_s()
        async with asyncio.TaskGroup() as group:
            while not stop.is_set():
                at_s += rng.exponential(burst / rate_per_s)
                await self.clock.sleep(max(at_s - self.clock.now_s(), 0.0))
                for _ in range(burst):
                    self._begin(group, items[int(rng.integers(len(items)))], at_s)

    def _begin(self, group: asyncio.TaskGroup, item: TaskItem, intended_at_s: float) -> None:
        call_id, region = f"{self.name}-{len(self.sent)}", self.regions[len(self.sent) % len(self.regions)]
        self.sent.append(call_id)
        group.create_task(self._one(call_id, region, item, intended_at_s))

    @property
    def failed(self) -> list[Call]:
        return [call for call in self.ended if call.status != OK]

    async def _one(self, call_id: str, region: str, item: TaskItem, intended_at_s: float) -> None:
        sent_at_s = self.clock.now_s()
        deadline_at_s = sent_at_s + self.deadline_s
        told = self.in_flight[call_id] = InFlight()
        tries: list[Try] = []
        while True:
            began_at_s = self.clock.now_s()
            answer = await self._rpc(call_id, region, item, deadline_at_s - began_at_s, told)
            ended_at_s = self.clock.now_s()
            wait_s = answer.retry_after_s or min(FIRST_WAIT_S * 2 ** len(tries), LONGEST_WAIT_S)
            if not self.retrying or not answer.may_be_retried or ended_at_s + wait_s + LEFT_S >= deadline_at_s:
                break
            tries.append(Try(began_at_s, ended_at_s, answer.status, answer.reason, answer.accepted, answer.task_id))
            await self.clock.sleep(wait_s)
        del self.in_flight[call_id]
        last = answer.summary or inference_pb2.Summary()
        self.ended.append(
            Call(
                call_id=call_id,
                sent_at_s=sent_at_s,
                deadline_at_s=deadline_at_s,
                end_at_s=ended_at_s,
                status=answer.status,
                task_id=last.task_id or answer.task_id,
                edge_id=last.edge_id,
                version=last.version,
                attempts=last.attempts,
                question=item.item_id,
                answer="".join(answer.texts),
                summary=last.text,
                intended_at_s=intended_at_s,
                first_token_at_s=answer.first_token_at_s,
                reason=answer.reason,
                accepted=answer.accepted,
                tries=tuple(tries),
            )
        )

    async def _rpc(self, call_id: str, region: str, item: TaskItem, left_s: float, told: InFlight) -> _Answer:
        answer = _Answer()
        told.edge_id, told.num_tokens = "", 0
        request = inference_pb2.GenerateRequest(
            prompt=item.prompt,
            user_id=call_id,
            task_type=item.task_type,
            alpha=self.alpha,
            region=region,
            idempotency_key=call_id if self.retrying else "",
        )
        inference = inference_pb2_grpc.InferenceServiceStub(self.channel)
        try:
            async with open_stream(inference.Generate(request, timeout=left_s)) as stream:
                async for response in stream:
                    self._take(response, answer, told)
            if answer.summary is None:
                answer.status = "NO_SUMMARY"
        except grpc.aio.AioRpcError as error:
            failure = failure_of(error)
            answer.status, answer.reason, answer.retry_after_s = failure.code.name, failure.reason, failure.retry_after_s
        return answer

    def _take(self, response: inference_pb2.GenerateResponse, answer: _Answer, told: InFlight) -> None:
        event = response.WhichOneof("event")
        if answer.summary is not None:
            answer.status = "MORE_AFTER_SUMMARY"
        if event == "accepted":
            answer.accepted, answer.task_id, told.edge_id = True, response.accepted.task_id, response.accepted.edge_id
        elif event == "token":
            answer.first_token_at_s = answer.first_token_at_s or self.clock.now_s()
            answer.texts.append(response.token.text)
            told.num_tokens += 1
        elif event == "restarted":
            answer.texts.clear()
            told.edge_id, told.num_tokens = response.restarted.edge_id, 0
        elif event == "summary":
            answer.summary = response.summary
