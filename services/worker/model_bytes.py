"""What the base model weighs, for a worker whose edges file gives memory as a share of it: asked of the merger, remembered on disk."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path

import grpc
import grpc.aio

from moedge.v1 import merger_pb2, merger_pb2_grpc
from services.runtime.clock import Clock
from services.runtime.edges import DescribedEdge, EdgeConfig, ModelBytes
from services.runtime.errors import SettingsError
from services.runtime.net import PLAINTEXT, Network
from services.runtime.status import failure_of
from services.worker.committed import read_sealed, write_sealed
from services.worker.fetch import TRANSIENT
from services.worker.settings import WorkerSettings

logger = logging.getLogger(__name__)

FILE_NAME = "model-bytes.json"
ASK_TIMEOUT_S = 2.0
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 5.0


async def resolved(
    edge: DescribedEdge, settings: WorkerSettings, directory: Path, clock: Clock, network: Network = PLAINTEXT
) -> EdgeConfig:
    """The edge with its memory in bytes. Waits for the merger where only it can tell, as nothing can be served without it either."""
    if not edge.needs_model:
        return edge.resolved(None)
    if settings.merger_address is None:
        raise SettingsError(
            f"MOEDGE_WORKER_MERGER_ADDRESS: missing; edge {edge.name!r} has its memory_bytes as a share of the model, "
            "which the merger knows: name it, or give memory_bytes as a number"
        )
    config = edge.resolved(await _sizes(settings, settings.merger_address, directory / FILE_NAME, clock, network))
    logger.info("memory for weights, as a share of the model: %d bytes", config.memory_bytes)
    return config


async def _sizes(settings: WorkerSettings, merger_address: str, remembered: Path, clock: Clock, network: Network) -> ModelBytes:
    """The merger's word goes before what it said another time."""
    wait_s = FIRST_WAIT_S
    async with network.channel(merger_address, "merger") as merger:
        stub = merger_pb2_grpc.MergerServiceStub(merger)
        while True:
            try:
                told = await stub.GetProfiles(merger_pb2.GetProfilesRequest(base_model=settings.base_model), timeout=ASK_TIMEOUT_S)
                sizes = ModelBytes(told.model_bytes.full, told.model_bytes.non_expert, told.model_bytes.num_experts)
                write_sealed(remembered, json.dumps(asdict(sizes)).encode())
                return sizes
            except grpc.aio.AioRpcError as error:
                failure = failure_of(error)
                if failure.code not in TRANSIENT:
                    raise failure from error
            if (data := read_sealed(remembered)) is not None:
                logger.info("the merger at %s does not answer; memory as it said before", merger_address)
                return ModelBytes(**json.loads(data))
            trouble = await network.trouble(merger_address, "merger")
            logger.info("waiting for the merger at %s: %s", merger_address, trouble or failure.message)
            await clock.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
