"""What a benchmark of the broker runs: `moedge serve broker` and a bare proxy on one core, stub edges and the load on the others.

Kafka and Redis are given; they run wherever the machine puts them.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc.aio

from loadgen.bench import bare_hop
from loadgen.bench.broker_load import Way
from loadgen.bench.broker_places import check_kafka, check_redis, num_task_events
from loadgen.bench.pinned import Cores, Pinned, cores, kept_to, moedge
from loadgen.bench.stub_edges import Pace, serve_stub_edges
from loadgen.child import ChildStack
from moedge.v1 import broker_pb2, broker_pb2_grpc, worker_pb2
from services.runtime.clock import Clock
from services.runtime.net import channel
from services.runtime.store import open_redis

READY_WITHIN_S = 30.0
LOOKED_S = 0.1
AS_BROKER = "bench"  # whom direct calls come from


@dataclass(frozen=True, slots=True)
class Running:
    direct: Way
    hop: Way
    broker: Way
    broker_cpu_s: Callable[[], float]
    hop_cpu_s: Callable[[], float]
    broker_rss_bytes: Callable[[], int]
    num_events: Callable[[], Awaitable[int]]  # that the broker has written; complete once it has ended
    is_pinned: bool


@asynccontextmanager
async def running(num_edges: int, pace: Pace, kafka: str, redis_url: str, clock: Clock) -> AsyncIterator[Running]:
    """Everything up and the broker knowing every edge. Raises `PlaceError` where Kafka or Redis will not do."""
    await _check(kafka, redis_url)
    places = cores()
    before = await num_task_events(kafka)
    with TemporaryDirectory(prefix="moedge-bench-") as logs, kept_to(places.others):
        async with AsyncExitStack() as stack:
            serve = partial(serve_stub_edges, num_edges, pace, redis_url)
            addresses = await stack.enter_async_context(ChildStack(serve, lambda kind, body: None, niceness=0))
            edges = [addresses[key] for key in sorted(addresses)]
            hop_address, hop = _hop(edges, places, Path(logs))
            broker_address, broker = _broker(kafka, redis_url, places, Path(logs))
            stack.enter_context(hop)
            stack.enter_context(broker)
            to_edges = [await stack.enter_async_context(channel(edge)) for edge in edges]
            to_hop = await stack.enter_async_context(channel(hop_address))
            to_broker = await stack.enter_async_context(channel(broker_address))
            await _until(lambda: _connected(to_hop), hop, clock)
            await _until(lambda: _knows(to_broker, num_edges), broker, clock)
            yield Running(
                direct=Way(to_edges, pace.num_tokens, clock, AS_BROKER),
                hop=Way([to_hop], pace.num_tokens, clock, AS_BROKER),
                broker=Way([to_broker], pace.num_tokens, clock),
                broker_cpu_s=lambda: broker.cpu_s,
                hop_cpu_s=lambda: hop.cpu_s,
                broker_rss_bytes=lambda: broker.rss_bytes,
                num_events=lambda: _num_events(kafka, before),
                is_pinned=bool(places.measured),
            )


async def _check(kafka: str, redis_url: str) -> None:
    redis = open_redis(redis_url)
    try:
        await check_redis(redis, redis_url)
    finally:
        await redis.aclose()
    await check_kafka(kafka)


async def _num_events(kafka: str, before: int) -> int:
    return await num_task_events(kafka) - before


def _hop(edges: Sequence[str], places: Cores, logs: Path) -> tuple[str, Pinned]:
    port = _free_port()
    command = [sys.executable, "-m", bare_hop.__name__, str(port), *edges]
    return f"127.0.0.1:{port}", Pinned("bare proxy", command, places.measured, logs / "hop.log", _environment({}))


def _broker(kafka: str, redis_url: str, places: Cores, logs: Path) -> tuple[str, Pinned]:
    port = _free_port()
    command = [*moedge(), "serve", "broker", "--port", str(port)]
    variables = _environment({"MOEDGE_KAFKA_BOOTSTRAP": kafka, "MOEDGE_REDIS_URL": redis_url})
    return f"127.0.0.1:{port}", Pinned("broker", command, places.measured, logs / "broker.log", variables)


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    """This process's, without settings of services: the defaults are measured."""
    return {name: value for name, value in os.environ.items() if not name.startswith("MOEDGE_")} | dict(given)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _until(holds: Callable[[], Awaitable[bool]], process: Pinned, clock: Clock) -> None:
    give_up_at_s = clock.now_s() + READY_WITHIN_S
    while not await holds():
        process.check()
        if clock.now_s() > give_up_at_s:
            raise process.trouble(f"was not ready within {READY_WITHIN_S:.0f} s")
        await clock.sleep(LOOKED_S)


async def _connected(to_hop: grpc.aio.Channel) -> bool:
    try:
        async with asyncio.timeout(LOOKED_S):
            await to_hop.channel_ready()
    except TimeoutError:
        return False
    return True


async def _knows(to_broker: grpc.aio.Channel, num_edges: int) -> bool:
    try:
        listed = await broker_pb2_grpc.BrokerServiceStub(to_broker).ListEdges(broker_pb2.ListEdgesRequest(), timeout=1.0)
    except grpc.aio.AioRpcError:
        return False
    return sum(edge.state == worker_pb2.EDGE_STATE_READY for edge in listed.edges) == num_edges
