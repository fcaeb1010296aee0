"""The same open-loop load sent one way or another: straight to the edges, through a proxy, through the broker. Keeps when tokens came.

A call's latency counts from the instant it was really sent; how late that was is kept beside it.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc
import grpc.aio
import numpy as np

from loadgen.bench.stub_edges import REGION
from loadgen.lateness import late_sends
from moedge.v1 import inference_pb2, inference_pb2_grpc
from services.core.workload.arrivals import Instants
from services.runtime.clock import Clock
from services.runtime.errors import RuntimeFault
from services.runtime.net import open_stream

DEADLINE_S = 10.0
PROMPT = "yesterday lipafe gokeva caused which outcome"
TASK_TYPE = "alternative"


class NoAnswerError(RuntimeFault):
    """There is nothing to take latencies of."""


@dataclass(slots=True)
class Calls:
    """Of one way, over all its blocks or in one: seconds of each call that was answered in full, and what became of the others."""

    late_s: list[float] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def num_sent(self) -> int:
        return len(self.first_token_s) + self.failures.total()

    def __iadd__(self, other: Calls) -> Calls:
        self.late_s += other.late_s
        self.first_token_s += other.first_token_s
        self.whole_s += other.whole_s
        self.failures += other.failures
        return self


@dataclass(frozen=True, slots=True)
class Latencies:
    """Seconds: to the first token and to the end from when the call was sent, and how much later than planned that was."""

    p50_s: float
    p99_s: float
    whole_p50_s: float
    late_p50_s: float
    late_p99_s: float
    punctual: bool  # whether the load was sent on time: where it was not, figures are those of the load generator


def latencies(calls: Calls) -> Latencies:
    """Raises `NoAnswerError` where no call was answered."""
    if not calls.first_token_s:
        raise NoAnswerError(f"no call of {calls.num_sent} was answered: {dict(calls.failures) or 'the load is too small'}")
    p50_s, p99_s = np.percentile(calls.first_token_s, (50, 99))
    late_p50_s, late_p99_s = np.percentile(calls.late_s, (50, 99))
    return Latencies(
        float(p50_s), float(p99_s), float(np.median(calls.whole_s)), float(late_p50_s), float(late_p99_s), late_sends(calls.late_s).ok
    )


class Way:
    """To `channels` in turn; a `broker_id` makes the calls those that a broker makes to an edge."""

    def __init__(self, channels: Sequence[grpc.aio.Channel], num_tokens: int, clock: Clock, broker_id: str = "") -> None:
        self._stubs = itertools.cycle([inference_pb2_grpc.InferenceServiceStub(channel) for channel in channels])
        self._num_tokens = num_tokens
        self._clock = clock
        self._broker_id = broker_id
        self._numbers = itertools.count()

    async def block(self, instants: Instants) -> Calls:
        """Send one call at each instant (seconds from now) whatever becomes of it, and wait for the last to end."""
        calls, clock = Calls(), self._clock
        gc.collect()
        gc.disable()  # a collection here would be taken for latency
        try:
            async with asyncio.TaskGroup() as group:
                began_at_s = clock.now_s()
                for at_s in instants.tolist():
                    await clock.sleep(max(began_at_s + at_s - clock.now_s(), 0.0))
                    group.create_task(self._call(began_at_s + at_s, calls))
        finally:
            gc.enable()
        return calls

    async def _call(self, planned_at_s: float, calls: Calls) -> None:
        request, clock = self._request(), self._clock
        num_tokens, first_at_s, ended = 0, 0.0, False
        sent_at_s = clock.now_s()
        try:
            async with open_stream(next(self._stubs).Generate(request, timeout=DEADLINE_S)) as responses:
                async for response in responses:
                    if response.HasField("token"):
                        num_tokens += 1
                        if num_tokens == 1:
                            first_at_s = clock.now_s()
                    ended = response.HasField("summary")
        except grpc.aio.AioRpcError as error:
            calls.failures[error.code().name] += 1
            return
        if not ended or num_tokens != self._num_tokens:
            calls.failures["INCOMPLETE"] += 1
            return
        calls.late_s.append(sent_at_s - planned_at_s)
        calls.first_token_s.append(first_at_s - sent_at_s)
        calls.whole_s.append(clock.now_s() - sent_at_s)

    def _request(self) -> inference_pb2.GenerateRequest:
        request = inference_pb2.GenerateRequest(
            prompt=PROMPT, max_tokens=self._num_tokens, user_id="bench", region=REGION, task_type=TASK_TYPE, alpha=0.5
        )
        if self._broker_id:
            task_id = f"{self._broker_id}-{next(self._numbers):028d}"
            request.dispatch.CopyFrom(inference_pb2.Dispatch(task_id=task_id, broker_id=self._broker_id, attempt=1))
        return request
