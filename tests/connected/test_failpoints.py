"""A worker or the merger dies at each step of an update: what serves is the old version or the new one, and the next update succeeds."""

from __future__ import annotations

import asyncio
import signal
import uuid
from contextlib import contextmanager
from itertools import pairwise

import grpc.aio
import numpy as np
import pytest

from moedge.v1 import merger_pb2, merger_pb2_grpc, worker_pb2
from services.runtime.clock import SystemClock
from services.runtime.failpoints import MERGER_POINTS, WORKER_POINTS
from services.runtime.net import channel
from services.tasks.sources import open_tasks
from tests.connected.local_stack import started_stack
from tests.fakes.processes import started_redis
from tests.fakes.waiting import until
from tests.harness.checker import check, unfinished
from tests.harness.history import Fault
from tests.harness.recorder import Calls
from tests.harness.versions import check_versions

pytestmark = [pytest.mark.connected, pytest.mark.slow, pytest.mark.timeout(300)]

VICTIM = "west"
UPDATE_S = 60.0
DEADLINE_S = 20.0
RATE_PER_S = 5.0
LEDGER_WITHIN_S = 30.0
JUNK = (".committed.json.*", "manifests/.*", "blobs/*.part", "blobs/.*")


@pytest.fixture(scope="module")
def stack(tmp_path_factory, kafka_bootstrap):
    directory = tmp_path_factory.mktemp("failpoints")
    with started_redis(directory) as redis_server, started_stack(directory, kafka_bootstrap, redis_server.url) as stack:
        # Updates come from the tests alone.
        stack.services["controller"].arguments += ["--trigger", "never"]
        stack.kill("controller")
        yield stack
        print(stack.tails())


@pytest.fixture(scope="module")
def mixes():
    """A mix that no test has asked for yet, each time."""
    types = open_tasks("toy", "heldout", items_per_type=1).task_types
    shares = [n / 20 for n in range(1, 20)]
    return iter([{a: share, b: 1 - share} for share in shares for a, b in pairwise(types)])


@contextmanager
def failpoint(stack, name, text):
    """The service started again with a failpoint; without it afterwards."""
    service = stack.services[name]
    variable = f"MOEDGE_{service.arguments[0].upper()}_FAILPOINT"
    service.kill()
    service.environment[variable] = text
    service.start()
    try:
        yield service
    finally:
        service.environment.pop(variable)


async def built(stack, mix):
    """A version for this mix in the victim's memory."""
    request = merger_pb2.BuildModelRequest(mix=mix, budget_bytes=1_800_000)
    async with channel(stack.address("merger")) as merger:
        async for answer in merger_pb2_grpc.MergerServiceStub(merger).BuildModel(request, timeout=UPDATE_S):
            if answer.WhichOneof("event") == "manifest":
                return answer.manifest.version
    raise AssertionError("the build ended without a manifest")


async def serving(stack):
    """The version that the victim says it serves, once it answers. A broker may still show the process before it."""
    clock = SystemClock()
    async with asyncio.timeout(UPDATE_S):
        while True:
            async with stack.worker(VICTIM) as worker:
                try:
                    return (await worker.GetStatus(worker_pb2.GetStatusRequest(), timeout=2.0)).entry.version
                except grpc.aio.AioRpcError:
                    await clock.sleep(0.1)


async def update(stack, version):
    async with stack.worker(VICTIM) as worker:
        await worker.LoadVersion(worker_pb2.LoadVersionRequest(version=version), timeout=UPDATE_S)


@pytest.mark.parametrize("point", WORKER_POINTS)
async def test_a_worker_killed_during_an_update_serves_a_whole_version(stack, mixes, point):
    await stack.whole()
    before = await serving(stack)
    version = await built(stack, next(mixes))
    assert version != before
    items = open_tasks("toy", "heldout", items_per_type=4).items
    async with channel(stack.address("broker")) as broker:
        calls, stop = Calls(broker, f"call-{uuid.uuid4().hex[:8]}", DEADLINE_S, retrying=True), asyncio.Event()
        with failpoint(stack, VICTIM, f"{point}:kill") as service:
            assert await serving(stack) == before
            load = asyncio.create_task(calls.pour(items, RATE_PER_S, np.random.default_rng(0), stop))
            began_at_s = calls.clock.now_s()
            with pytest.raises(grpc.aio.AioRpcError):
                await update(stack, version)
            await until(lambda: not service.is_running, what="the worker's end")
            assert service.process.returncode == -signal.SIGKILL
        service.start()
        after = await serving(stack)
        fault = Fault(began_at_s, calls.clock.now_s())
        assert after == (version if point in ("switch", "ack") else before)
        await update(stack, version)
        assert await serving(stack) == version
        stop.set()
        await load
    events = await settled(stack, calls)
    assert check(calls.sent, calls.ended, events, [fault]) == []
    mine = [event for event in events if event.user_id in set(calls.sent)]
    assert check_versions(calls.ended, mine) == []
    assert not calls.failed
    assert [path for pattern in JUNK for path in (stack.directory / "workers" / VICTIM).glob(pattern)] == []


async def settled(stack, calls):
    give_up_at_s = calls.clock.now_s() + LEDGER_WITHIN_S
    while unfinished(calls.ended, events := await stack.ledger()) and calls.clock.now_s() < give_up_at_s:
        await calls.clock.sleep(0.5)
    return events


@pytest.mark.parametrize("point", MERGER_POINTS)
async def test_a_merger_killed_during_a_build_builds_the_same_version_when_it_is_back(stack, mixes, point):
    await stack.whole()
    before = await serving(stack)
    mix = next(mixes)
    with failpoint(stack, "merger", f"{point}:kill") as service:
        await merger_ready(stack)
        with pytest.raises(grpc.aio.AioRpcError):
            await built(stack, mix)
        await until(lambda: not service.is_running, what="the merger's end")
        assert service.process.returncode == -signal.SIGKILL
    assert await serving(stack) == before
    service.start()
    await merger_ready(stack)
    version = await built(stack, mix)
    assert await built(stack, mix) == version
    await update(stack, version)
    assert await serving(stack) == version


async def merger_ready(stack):
    """Until it has read its base model."""
    clock = SystemClock()
    async with asyncio.timeout(UPDATE_S), channel(stack.address("merger")) as merger:
        while True:
            try:
                await merger_pb2_grpc.MergerServiceStub(merger).GetProfiles(merger_pb2.GetProfilesRequest(), timeout=5.0)
                return
            except grpc.aio.AioRpcError:
                await clock.sleep(0.2)
