"""Users who send one task after the other and note when each token came: the gaps between two tokens of one answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc.aio
import numpy as np
from numpy.typing import NDArray

from moedge.v1 import inference_pb2, inference_pb2_grpc
from services.runtime.net import channel

PROMPT_WORDS = (12, 36)
OUTPUT_TOKENS = (12, 36)
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Gap:
    """From one token of an answer to the next; instants of this process's performance counter."""

    began_at_s: float
    ended_at_s: float

    @property
    def lasted_s(self) -> float:
        return self.ended_at_s - self.began_at_s


@dataclass(slots=True)
class Streams:
    """`num_users` streams at a worker, without a pause between the tasks of one user."""

    num_words: int  # prompts are drawn from `w0` to here
    gaps: list[Gap] = field(default_factory=list)
    num_completed: int = 0
    failures: list[str] = field(default_factory=list)
    _versions: dict[int, str] = field(default_factory=dict)  # by user, of the task that runs

    @property
    def versions(self) -> set[str]:
        """Of the tasks that run."""
        return set(self._versions.values())

    @asynccontextmanager
    async def sent_to(self, address: str, num_users: int, seed: int) -> AsyncIterator[None]:
        stop = asyncio.Event()
        async with channel(address) as worker, asyncio.TaskGroup() as group:
            stub = inference_pb2_grpc.InferenceServiceStub(worker)
            for user in range(num_users):
                group.create_task(self._user(stub, user, np.random.default_rng((seed, user)), stop))
            try:
                yield
            finally:
                stop.set()

    def between(self, began_at_s: float, ended_at_s: float) -> NDArray[np.float64]:
        """Lengths of the gaps that lie in this time at least in part."""
        return np.array([gap.lasted_s for gap in self.gaps if gap.ended_at_s > began_at_s and gap.began_at_s < ended_at_s])

    async def _user(
        self, stub: inference_pb2_grpc.InferenceServiceAsyncStub, user: int, rng: np.random.Generator, stop: asyncio.Event
    ) -> None:
        while not stop.is_set():
            prompt = " ".join(f"w{n}" for n in rng.integers(self.num_words, size=int(rng.integers(*PROMPT_WORDS, endpoint=True))))
            num_tokens = int(rng.integers(*OUTPUT_TOKENS, endpoint=True))
            try:
                received = await self._task(stub, user, prompt, num_tokens)
                if received != num_tokens:
                    self.failures.append(f"{received} of {num_tokens} tokens came")
                self.num_completed += 1
            except grpc.aio.AioRpcError as error:
                self.failures.append(f"{error.code().name} {error.details()}")
        self._versions.pop(user, None)

    async def _task(self, stub: inference_pb2_grpc.InferenceServiceAsyncStub, user: int, prompt: str, num_tokens: int) -> int:
        """Tokens received."""
        request = inference_pb2.GenerateRequest(prompt=prompt, max_tokens=num_tokens)
        before_s: float | None = None
        received = 0
        async for response in stub.Generate(request, timeout=TIMEOUT_S):
            match response.WhichOneof("event"):
                case "accepted":
                    self._versions[user] = response.accepted.version
                case "token":
                    now_s = time.perf_counter()
                    if before_s is not None:
                        self.gaps.append(Gap(before_s, now_s))
                    before_s = now_s
                    received += 1
        return received
