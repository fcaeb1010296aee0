"""What an operator does to a stack of processes: `moedge edges` on edges that serve, and workers scaled, killed and started again."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path

import grpc.aio
import pytest

from moedge.v1 import inference_pb2, inference_pb2_grpc, merger_pb2, merger_pb2_grpc, worker_pb2
from services.runtime.clock import SystemClock
from services.runtime.net import channel, open_stream
from tests.connected.local_stack import EDGES, MOEDGE, REGION, LocalStack, ServiceProcess, started_stack

pytestmark = [pytest.mark.connected, pytest.mark.timeout(300)]

CLOCK = SystemClock()
PROMPT = "yesterday lipafe gokeva caused which outcome"
REPLICAS_FILE = """
[[edges]]
name = "small"
memory_bytes = "22% experts"
device = "cpu"
regions.here = { latency_s = 0.002, uplink_bytes_per_s = 1e7, downlink_bytes_per_s = 1e7 }
"""


@pytest.fixture(scope="module")
def stack(tmp_path_factory, kafka_bootstrap, redis_url):
    with started_stack(tmp_path_factory.mktemp("operators"), kafka_bootstrap, redis_url) as stack:
        yield stack


async def moedge(stack: LocalStack, *words: str) -> dict:
    """A command against the broker, as JSON."""
    command = [str(MOEDGE), *words, "--target", stack.address("broker"), "--json"]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, error = await process.communicate()
    assert process.returncode == 0, error.decode()
    answer: dict = json.loads(out)
    return answer


async def listed(stack: LocalStack) -> dict[str, dict]:
    return {edge["edge_id"]: edge for edge in (await moedge(stack, "status"))["edges"]}


async def state_is(stack: LocalStack, name: str, state: str) -> None:
    async with asyncio.timeout(10):
        while (await listed(stack))[name]["state"] != state:
            await CLOCK.sleep(0.05)


async def answered_by(stack: LocalStack, num_tasks: int = 4) -> set[str]:
    async with channel(stack.address("broker")) as users:
        stub = inference_pb2_grpc.InferenceServiceStub(users)

        async def edge_of() -> str:
            request = inference_pb2.GenerateRequest(prompt=PROMPT, task_type="alternative", region=REGION, max_tokens=4)
            async with open_stream(stub.Generate(request, timeout=60)) as stream:
                return [response async for response in stream][-1].summary.edge_id

        return set(await asyncio.gather(*(edge_of() for _ in range(num_tasks))))


async def updated(stack: LocalStack, name: str) -> str:
    """Give the edge another version, as the controller does."""
    async with channel(stack.address("merger")) as to_merger, stack.worker(name) as worker:
        request = merger_pb2.BuildModelRequest(mix={"alternative": 1.0}, budget_bytes=(await listed(stack))[name]["memory_bytes"])
        stub = merger_pb2_grpc.MergerServiceStub(to_merger)
        async with open_stream(stub.BuildModel(request, timeout=120)) as stream:
            manifest = [answer async for answer in stream][-1].manifest
        await worker.LoadVersion(worker_pb2.LoadVersionRequest(version=manifest.version), timeout=60)
        return manifest.version


async def test_a_drained_edge_gets_no_task_until_it_is_resumed(stack):
    await stack.whole()
    for name in EDGES[1:]:
        await moedge(stack, "edges", "drain", name)
        await state_is(stack, name, "draining")
    assert await answered_by(stack) == {EDGES[0]}
    await moedge(stack, "edges", "resume", EDGES[1])
    await state_is(stack, EDGES[1], "ready")
    await moedge(stack, "edges", "drain", EDGES[0])
    await state_is(stack, EDGES[0], "draining")
    assert await answered_by(stack) == {EDGES[1]}
    for name in EDGES:
        await moedge(stack, "edges", "resume", name)
        await state_is(stack, name, "ready")


async def test_a_pinned_edge_refuses_updates_and_a_rolled_back_one_is_pinned(stack):
    before = (await stack.whole())["west"]
    pinned = await moedge(stack, "edges", "pin", "west")
    assert pinned["version"] == before
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await updated(stack, "west")
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    await moedge(stack, "edges", "unpin", "west")
    after = await updated(stack, "west")
    assert after != before
    rolled = await moedge(stack, "edges", "rollback", "west")
    assert rolled["version"] == before
    async with asyncio.timeout(10):
        while True:
            edge = (await listed(stack))["west"]
            if (edge["version"], edge["pinned"]) == (before, True):
                break
            await CLOCK.sleep(0.05)


async def test_the_controllers_lag_is_known(stack):
    await stack.whole()
    async with asyncio.timeout(60):
        while not (lags := (await moedge(stack, "status"))["lags"]):
            await CLOCK.sleep(0.2)
    assert [(lag["group"], lag["topic"]) for lag in lags] == [("moedge-controller", "moedge.activations.v1")]


def replica(stack: LocalStack, number: int, edges_file: Path) -> ServiceProcess:
    """Identical commands, as one compose service scaled."""
    options = ["--edges-file", str(edges_file), "--edge", "small", "--replicas", "true", "--host", "0.0.0.0", "--torch-threads", "1"]
    places = ["--merger-address", stack.address("merger"), "--cache-dir", str(stack.directory / "replicas")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MOEDGE_")} | {
        "MOEDGE_KAFKA_BOOTSTRAP": stack.kafka_bootstrap,
        "MOEDGE_REDIS_URL": stack.redis_url,
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }
    return ServiceProcess(f"replica-{number}", ["worker", *options, *places], environment, stack.directory / f"replica-{number}.log")


async def replicas_ready(stack: LocalStack, *names: str) -> dict[str, dict]:
    async with asyncio.timeout(90):
        while True:
            edges = await listed(stack)
            ready = {name: edge for name, edge in edges.items() if name.startswith("small-") and edge["state"] == "ready"}
            if set(ready) == set(names):
                return ready
            await CLOCK.sleep(0.1)


async def test_scaled_workers_number_themselves_and_one_killed_comes_back_as_itself_without_the_merger(stack):
    await stack.whole()
    edges_file = stack.directory / "replicas.toml"
    edges_file.write_text(REPLICAS_FILE)
    processes = [replica(stack, number, edges_file) for number in range(3)]
    try:
        for process in processes:
            process.start()
        ready = await replicas_ready(stack, "small-1", "small-2", "small-3")
        assert len({edge["address"] for edge in ready.values()}) == 3
        assert len({edge["memory_bytes"] for edge in ready.values()}) == 1
        stack.kill("merger")
        processes[1].kill()
        left = {f"small-{number}" for number in (1, 2, 3)}
        async with asyncio.timeout(20):
            while len(left := {name for name, edge in (await listed(stack)).items() if name in left and edge["state"] == "ready"}) == 3:
                await CLOCK.sleep(0.05)
        processes[1].start()
        again = await replicas_ready(stack, "small-1", "small-2", "small-3")
        assert {name: edge["version"] for name, edge in again.items()} == {name: edge["version"] for name, edge in ready.items()}
        assert sorted(path.name for path in (stack.directory / "replicas").glob("small-*")) == ["small-1", "small-2", "small-3"]
        for process in processes[1:]:
            process.stop()
        async with asyncio.timeout(20):
            while len([name for name in await listed(stack) if name.startswith("small-")]) > 1:
                await CLOCK.sleep(0.05)
    finally:
        for process in processes:
            if process.is_running:
                process.kill()
        stack.start("merger")
