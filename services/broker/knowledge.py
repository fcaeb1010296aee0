"""What the broker knows of task types: the base model's profiles once the merger gave them, and what the edges' manifests name.

Without profiles every known task type is as probable as any other.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import grpc
import grpc.aio

from moedge.v1 import merger_pb2, merger_pb2_grpc
from services.core.offload.engine import OffloadEngine
from services.core.offload.posterior import PromptPosterior
from services.core.offload.values import EdgeSnapshot
from services.runtime.clock import Clock
from services.runtime.net import PLAINTEXT, Network
from services.runtime.status import failure_of

logger = logging.getLogger(__name__)

PROFILES_DEADLINE_S = 10.0
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 30.0


class Knowledge:
    def __init__(self, engine: OffloadEngine) -> None:
        self._engine = engine
        self._posterior = PromptPosterior({})
        self._profiled: frozenset[str] = frozenset()
        self._named: frozenset[str] = frozenset()
        self.base_model = ""

    @property
    def task_types(self) -> frozenset[str]:
        return self._profiled | self._named

    def see_edges(self, edges: Iterable[EdgeSnapshot]) -> None:
        self._named = frozenset(task_type for edge in edges for task_type in edge.quality)

    def learn(self, profiles: merger_pb2.GetProfilesResponse) -> None:
        self.base_model = profiles.base_model
        self._profiled = frozenset(profiles.profiles) | frozenset(profiles.prompt_words)
        self._posterior = PromptPosterior({t: dict(words.counts) for t, words in profiles.prompt_words.items()})
        self._engine.profiled(dict(profiles.output_tokens))

    def posterior(self, prompt: str) -> dict[str, float]:
        """Probability of each task type; empty where none is known."""
        found = self._posterior.posterior(prompt)
        if found or not self.task_types:
            return found
        return dict.fromkeys(sorted(self.task_types), 1.0 / len(self.task_types))


async def learn_profiles(knowledge: Knowledge, merger_address: str, base_model: str, clock: Clock, network: Network = PLAINTEXT) -> None:
    """Ask the merger until it answers. Serving does not wait for this."""
    wait_s, said = FIRST_RETRY_S, ""
    async with network.channel(merger_address, "merger") as merger:
        stub = merger_pb2_grpc.MergerServiceStub(merger)
        while True:
            try:
                request = merger_pb2.GetProfilesRequest(base_model=base_model)
                knowledge.learn(await stub.GetProfiles(request, timeout=PROFILES_DEADLINE_S))
                logger.info("profiles of %s: %s", knowledge.base_model, ", ".join(sorted(knowledge.task_types)))
                return
            except grpc.aio.AioRpcError as error:
                logger.debug("merger at %s has no profiles yet: %s", merger_address, failure_of(error).message)
                trouble = await network.trouble(merger_address, "merger") if error.code() is grpc.StatusCode.UNAVAILABLE else ""
                if trouble and trouble != said:
                    said = trouble
                    logger.error("%s", trouble)
            await clock.sleep(wait_s)
            wait_s = min(2.0 * wait_s, LAST_RETRY_S)
