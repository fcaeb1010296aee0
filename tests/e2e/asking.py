"""What the tests of the compose stack ask of its parts, and users that several of them send."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any

from moedge.v1 import worker_pb2, worker_pb2_grpc
from services.runtime.net import channel

FELT_S = 5.0  # from a worker's death to the last task of it that another edge has done
# Users near the small edges, to whom a good answer is worth little, and so many at once that one edge is not enough.
NEAR_SMALL: dict[str, Any] = {"regions": ("west",), "alpha": 0.001, "burst": 10}


@asynccontextmanager
async def service(stack, container):
    async with channel(stack.address(container)) as connection:
        yield connection


async def entry_of(stack, container):
    async with service(stack, container) as worker:
        return (await worker_pb2_grpc.WorkerServiceStub(worker).GetStatus(worker_pb2.GetStatusRequest(), timeout=5.0)).entry
