"""What a worker process has to find out before it can be built: which edge server it is, and where the rest of the stack lives."""

from __future__ import annotations

import logging
from urllib.parse import urlsplit

import grpc
import grpc.aio

from moedge.v1 import broker_pb2, broker_pb2_grpc
from services.runtime.clock import Clock
from services.runtime.edges import DescribedEdge, EdgesFileError, described_edges
from services.runtime.errors import SettingsError
from services.runtime.net import PLAINTEXT, Network, reachable_address, with_port
from services.worker.settings import WorkerSettings

logger = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 5.0
LONGEST_WAIT_S = 5.0


def chosen_edge(settings: WorkerSettings) -> DescribedEdge:
    """The edge server of the edges file that this process is."""
    if settings.edges_file is None:
        raise SettingsError("MOEDGE_WORKER_EDGES_FILE: missing; give an edges file that describes this edge server")
    try:
        edges = {edge.name: edge for edge in described_edges(settings.edges_file)}
    except EdgesFileError as error:
        raise SettingsError(str(error)) from error
    if settings.edge is None and len(edges) == 1:
        return next(iter(edges.values()))
    if settings.edge not in edges:
        wrong = "missing" if settings.edge is None else f"{settings.edge!r} is not in {settings.edges_file}"
        raise SettingsError(f"MOEDGE_WORKER_EDGE: {wrong}; there are {', '.join(edges)}")
    return edges[settings.edge]


async def joined(settings: WorkerSettings, edge_id: str, clock: Clock, network: Network = PLAINTEXT) -> WorkerSettings:
    """Settings with what the broker at `join` knows filled in where nothing was set. Waits for the broker, and says so."""
    if settings.join is None:
        return settings
    wait_s = 0.2
    async with network.channel(settings.join, "broker") as broker:
        stub = broker_pb2_grpc.BrokerServiceStub(broker)
        while True:
            try:
                told = await stub.Join(broker_pb2.JoinRequest(edge_id=edge_id), timeout=JOIN_TIMEOUT_S)
                break
            except grpc.aio.AioRpcError as error:
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    raise SettingsError(f"MOEDGE_WORKER_JOIN: {settings.join} does not let this worker join ({error.details()})") from error
                if trouble := await network.trouble(settings.join, "broker"):
                    raise SettingsError(f"MOEDGE_WORKER_JOIN: {trouble}") from error
                logger.info("waiting for the broker at %s (%s)", settings.join, error.details())
            await clock.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
    found = {
        "kafka_bootstrap": settings.kafka_bootstrap or told.kafka_bootstrap or None,
        "redis_url": settings.redis_url or told.redis_url or None,
        "merger_address": settings.merger_address or told.merger_address or None,
        "base_model": settings.base_model or told.base_model,
    }
    logger.info("joined at %s: Kafka %s, Redis, merger %s", settings.join, found["kafka_bootstrap"], found["merger_address"])
    return settings.model_copy(update=found)


def advertised(settings: WorkerSettings, bound: str) -> str:
    """The address that brokers and the controller call this worker at: as set, else one of its own that they can reach."""
    if settings.advertise:
        return with_port(settings.advertise, bound)
    own = reachable_address(bound, _hosts(settings))
    if own is None:
        raise SettingsError(f"MOEDGE_WORKER_ADVERTISE: missing; this worker listens on {bound}, say at which HOST:PORT others reach it")
    if own != bound:
        logger.info("listening on %s, others reach this worker at %s (MOEDGE_WORKER_ADVERTISE says otherwise)", bound, own)
    return own


def _hosts(settings: WorkerSettings) -> list[str]:
    """Where the rest of the stack lives, the likeliest way first."""
    redis_host = urlsplit(settings.redis_url).hostname if settings.redis_url else None
    addresses = [address.rpartition(":")[0].strip("[]") for address in (settings.join, settings.merger_address) if address]
    return [*addresses, *([redis_host] if redis_host else [])]
