"""A worker of its own whose edges file gives memory as a share: the merger says what the model weighs, and the disk remembers it."""

from __future__ import annotations

import asyncio

import pytest

from moedge.v1 import merger_pb2, merger_pb2_grpc
from services.merger.servicer import weights_of
from services.runtime.clock import SystemClock
from services.runtime.edges import described_edges
from services.runtime.errors import SettingsError
from services.runtime.net import channel
from services.worker.joining import advertised
from services.worker.model_bytes import FILE_NAME, resolved
from services.worker.settings import WorkerSettings
from tests.fakes.processes import free_port
from tests.unit.serving_builders import running_merger, running_site

EDGES = """
[[edges]]
name = "small"
memory_bytes = {memory}
max_batch = 2
device = "cpu"
initial_mix = {{ left = 1.0 }}
regions.here = {{ latency_s = 0, uplink_bytes_per_s = 1e9, downlink_bytes_per_s = 1e9 }}
"""


def described(directory, memory='"50% experts"'):
    path = directory / "edges.toml"
    path.write_text(EDGES.format(memory=memory))
    return described_edges(path)[0]


async def test_the_merger_tells_what_its_model_weighs(tmp_path):
    async with running_merger(tmp_path) as merger, channel(merger.address) as to_merger:
        told = await merger_pb2_grpc.MergerServiceStub(to_merger).GetProfiles(merger_pb2.GetProfilesRequest(), timeout=5)
        base = merger.builder.base
    assert told.model_bytes.full == base.full_bytes
    assert told.model_bytes.num_experts == 4 * 8
    assert told.model_bytes.full - told.model_bytes.non_expert == sum(stack.num_bytes() for stack in base.model.experts)


async def test_a_worker_serves_within_its_share_and_again_with_the_merger_away(tmp_path):
    clock, edge = SystemClock(), described(tmp_path)
    async with running_merger(tmp_path) as merger:
        settings = WorkerSettings.load(merger_address=merger.address)
        config = await resolved(edge, settings, tmp_path / "worker" / "small", clock)
        assert config.memory_bytes == edge.resolved(weights_of(merger.builder.base)).memory_bytes
        async with running_site(tmp_path, merger.address, config) as site:
            entry = site.worker._ready().presence.entry()
            assert 0.5 * config.memory_bytes < entry.model_bytes <= config.memory_bytes
    again = await resolved(edge, settings, tmp_path / "worker" / "small", clock)
    assert again == config
    async with running_site(tmp_path, merger.address, again) as site:
        assert (await site.answer()).version == entry.version


async def test_a_first_start_waits_for_the_merger(tmp_path):
    port = free_port()
    settings = WorkerSettings.load(merger_address=f"127.0.0.1:{port}")
    waiting = asyncio.create_task(resolved(described(tmp_path), settings, tmp_path, SystemClock()))
    async with running_merger(tmp_path, port=port):
        assert (await asyncio.wait_for(waiting, 20)).memory_bytes > 0
    assert (tmp_path / FILE_NAME).exists()


async def test_a_damaged_memory_of_it_is_not_used(tmp_path):
    (tmp_path / FILE_NAME).write_bytes(b"x" * 40)
    settings = WorkerSettings.load(merger_address=f"127.0.0.1:{free_port()}")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(resolved(described(tmp_path), settings, tmp_path, SystemClock()), 0.5)


async def test_bytes_need_no_merger_and_a_share_without_one_is_refused_with_the_cure(tmp_path):
    settings = WorkerSettings.load()
    assert (await resolved(described(tmp_path, "1000"), settings, tmp_path, SystemClock())).memory_bytes == 1000
    with pytest.raises(SettingsError, match="MOEDGE_WORKER_MERGER_ADDRESS: missing; edge 'small' has its memory_bytes as a share"):
        await resolved(described(tmp_path), settings, tmp_path, SystemClock())


@pytest.mark.parametrize(("given", "bound", "address"), [
    ({}, "127.0.0.1:50051", "127.0.0.1:50051"),
    ({"merger_address": "127.0.0.1:1"}, "0.0.0.0:50051", "127.0.0.1:50051"),
    ({"merger_address": "no-such-host.invalid:1", "redis_url": "redis://127.0.0.1:1/0"}, "0.0.0.0:7", "127.0.0.1:7"),
    ({"join": "[::1]:1"}, "[::]:50051", "[::1]:50051"),
    ({"advertise": "192.0.2.7"}, "0.0.0.0:50051", "192.0.2.7:50051"),
    ({"advertise": "192.0.2.7:9"}, "0.0.0.0:50051", "192.0.2.7:9"),
    ({"advertise": "edge.example"}, "0.0.0.0:50051", "edge.example:50051"),
    ({"advertise": "2001:db8::7"}, "[::]:50051", "[2001:db8::7]:50051"),
    ({"advertise": "[2001:db8::7]:9"}, "[::]:50051", "[2001:db8::7]:9"),
])  # fmt: skip
def test_a_worker_on_every_address_tells_one_that_leads_to_it(given, bound, address):
    assert advertised(WorkerSettings.load(**given), bound) == address


def test_a_worker_that_finds_no_way_to_itself_says_what_to_set(monkeypatch):
    monkeypatch.setattr("services.runtime.net.socket.gethostname", lambda: "no-such-host.invalid")
    with pytest.raises(SettingsError, match="MOEDGE_WORKER_ADVERTISE: missing; "):
        advertised(WorkerSettings.load(merger_address="no-such-host.invalid:1"), "0.0.0.0:50051")
