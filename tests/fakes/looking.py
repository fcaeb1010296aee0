"""Looks at a broker's edges until one is as it should be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc.aio

from moedge.v1 import broker_pb2, broker_pb2_grpc, worker_pb2
from services.runtime.clock import SystemClock
from services.runtime.net import channel

LOOK_EVERY_S = 0.1
CALL_S = 2.0


async def edge_seen(
    broker: str, name: str, state: worker_pb2.EdgeState.ValueType, within_s: float, each_time: Callable[[], None] = lambda: None
) -> broker_pb2.Edge:
    """The edge once the broker at that address has it in that state. Raises TimeoutError, or what `each_time` raises."""
    clock = SystemClock()
    async with asyncio.timeout(within_s), channel(broker) as to_broker:
        stub = broker_pb2_grpc.BrokerServiceStub(to_broker)
        while True:
            try:
                listed = await stub.ListEdges(broker_pb2.ListEdgesRequest(), timeout=CALL_S)
            except grpc.aio.AioRpcError:
                listed = broker_pb2.ListEdgesResponse()
            for edge in listed.edges:
                if edge.edge_id == name and edge.state == state:
                    return edge
            each_time()
            await clock.sleep(LOOK_EVERY_S)
