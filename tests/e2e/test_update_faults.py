"""Deaths amid an update: of the merger while it builds, of a worker while it takes the new version. Part of the faults' table."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest

from moedge.v1 import merger_pb2, merger_pb2_grpc, worker_pb2, worker_pb2_grpc
from services.runtime.status import failure_of
from tests.e2e.asking import FELT_S, entry_of, service
from tests.harness.faults import killed

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(7200)]

BUILD_S = 60.0


async def profile_types(merger):
    answer = await merger_pb2_grpc.MergerServiceStub(merger).GetProfiles(merger_pb2.GetProfilesRequest(), timeout=10.0)
    return sorted(answer.profiles)


def fresh_mix(types, rng):
    shares = rng.multinomial(20, np.ones(len(types)) / len(types)) / 20
    return {task_type: float(share) for task_type, share in zip(types, shares, strict=True) if share}


async def build(merger, mix, budget_bytes, on_phase=None):
    """The version of a build; `on_phase` is told each phase as it begins."""
    request = merger_pb2.BuildModelRequest(mix=mix, budget_bytes=budget_bytes)
    async for answer in merger_pb2_grpc.MergerServiceStub(merger).BuildModel(request, timeout=BUILD_S):
        if answer.WhichOneof("event") == "manifest":
            return answer.manifest.version
        if on_phase is not None:
            await on_phase(answer.progress.phase)
    raise AssertionError("the build ended without a manifest")


async def update(stack, container, version):
    """The update that the test wants, after those that the controller may have under way."""

    async def done():
        async with service(stack, container) as worker:
            try:
                await worker_pb2_grpc.WorkerServiceStub(worker).LoadVersion(worker_pb2.LoadVersionRequest(version=version), timeout=BUILD_S)
            except grpc.aio.AioRpcError as error:
                if failure_of(error).reason == "UPDATE_RUNNING":
                    return False
                raise
        return True

    await stack.until(done, f"{container.name} takes {version}", BUILD_S)


async def test_10_a_death_amid_an_update_leaves_a_whole_version(scenarios, stack, counts):
    seed = np.random.SeedSequence().generate_state(1)[0]
    print(f"seed {seed}")  # not a fixed one: the merger keeps what it built, and a build that it has cannot be killed
    rng = np.random.default_rng(seed)
    async with scenarios.loaded("10 death amid an update", "0 refused, old or new version serves, the next update succeeds") as run:
        merger, worker = stack.container("merger"), stack.container("worker-medium")
        budget_bytes = (await entry_of(stack, worker)).memory_bytes
        async with service(stack, merger) as connection:
            types = await profile_types(connection)
        version = ""
        for number in range(counts.build_kills):
            version = await killed_build(run, stack, merger, fresh_mix(types, rng), budget_bytes, number)
        edge_id = (await entry_of(stack, worker)).edge_id
        run.sent_back.append((edge_id, version))
        await update(stack, worker, version)
        for number in range(counts.swap_kills):
            async with service(stack, merger) as connection:
                version = await build(connection, fresh_mix(types, rng), budget_bytes)
            await killed_swap(run, stack, worker, version, 0.1 + 0.2 * (number % 4))
    await run.judge(answered=1.0)
    assert run.row.refused == 0
    run.row.met = True


async def killed_build(run, stack, merger, mix, budget_bytes, number):
    """The merger dies in a phase of a build and makes the same build when it is back; the version."""
    phases, seen = ("merge", "measure", "write"), []

    async def kill_there(phase):
        seen.append(phase)
        if phase == phases[number % len(phases)]:
            await dying.inject()

    dying = killed(stack, "merger")
    try:
        async with service(stack, merger) as connection:
            with pytest.raises(grpc.aio.AioRpcError):
                await build(connection, mix, budget_bytes, kill_there)
    finally:
        await dying.heal()
    assert dying.began_at_s is not None, seen
    await stack.whole()
    async with service(stack, merger) as connection:
        return await build(connection, mix, budget_bytes)


async def killed_swap(run, stack, worker, version, after_s):
    """The worker dies some time into an update; then it serves what it served or what it was told to, and takes the update."""
    before = (await entry_of(stack, worker)).version
    edge_id = (await entry_of(stack, worker)).edge_id
    run.sent_back += [(edge_id, version), (edge_id, before)]
    loading = asyncio.create_task(update(stack, worker, version))
    await run.wait(after_s)
    async with run.during(killed(stack, "worker-medium", which=[worker]), settles_s=FELT_S):
        await asyncio.gather(loading, return_exceptions=True)
    await stack.whole()
    assert (await entry_of(stack, worker)).version in (before, version)
    await update(stack, worker, version)
    assert (await entry_of(stack, worker)).version == version
