"""What the engine says of the containers: no more rights, memory and openings than they need; and several brokers share the edges."""

from __future__ import annotations

import asyncio

import pytest

from moedge.v1 import broker_pb2, broker_pb2_grpc
from services.runtime.net import channel
from tests.harness.compose import GRPC_PORT, PORTS, SERVICES
from tests.harness.faults import Scaled
from tests.harness.history import OK

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

MODEL_SERVICES = [name for name in SERVICES if name not in ("kafka", "redis")]


@pytest.fixture
async def described(stack, request):
    container = stack.container(request.param)
    container.reload()
    return container


of_every_service = pytest.mark.parametrize("described", SERVICES, indirect=True)


@of_every_service
async def test_no_process_has_rights_that_it_does_not_need(described):
    host, config = described.attrs["HostConfig"], described.attrs["Config"]
    assert config["User"] not in ("", "0", "root")
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert not host["Privileged"]
    assert any(option.startswith("no-new-privileges") and not option.endswith("false") for option in host["SecurityOpt"])
    assert host["PidMode"] == ""
    assert host["NetworkMode"] != "host"


@of_every_service
async def test_a_process_runs_as_the_user_that_the_image_names(described):
    """The user of the configuration may be a name: what counts is the process."""
    code, output = await asyncio.to_thread(described.exec_run, ["cat", "/proc/1/status"])
    uids = next(line for line in output.decode().splitlines() if line.startswith("Uid:")).split()[1:]
    effective = next(line for line in output.decode().splitlines() if line.startswith("CapEff:")).split()[1]
    assert code == 0
    assert "0" not in uids
    assert int(effective, 16) == 0


@of_every_service
async def test_the_root_file_system_cannot_be_written(described):
    assert described.attrs["HostConfig"]["ReadonlyRootfs"]
    code, output = await asyncio.to_thread(described.exec_run, ["sh", "-c", "echo x > /written"])
    assert code != 0
    assert b"Read-only file system" in output


@of_every_service
async def test_processor_memory_and_processes_are_limited(described):
    host = described.attrs["HostConfig"]
    assert 0 < host["NanoCpus"] <= 2e9
    assert 0 < host["Memory"] <= 2 << 30
    assert 0 < host["PidsLimit"] <= 1024


@of_every_service
async def test_every_service_has_an_init_and_a_health_check_and_its_logs_are_bounded(described):
    host, config = described.attrs["HostConfig"], described.attrs["Config"]
    assert host["Init"]
    assert config["Healthcheck"]["Test"][0] in ("CMD", "CMD-SHELL")
    assert described.attrs["State"]["Health"]["Status"] == "healthy"
    assert host["LogConfig"]["Config"]["max-size"]


@of_every_service
async def test_the_broker_alone_publishes_a_port_and_on_loopback(described, request):
    published = {port: at for port, at in described.attrs["NetworkSettings"]["Ports"].items() if at}
    if "broker" not in described.name:
        assert published == {}
        return
    assert list(published) == [f"{GRPC_PORT}/tcp"]
    assert {at["HostIp"] for at in published[f"{GRPC_PORT}/tcp"]} == {"127.0.0.1"}
    assert {int(at["HostPort"]) for at in published[f"{GRPC_PORT}/tcp"]} <= set(PORTS)


@pytest.mark.parametrize("service", MODEL_SERVICES)
async def test_images_are_labelled_and_start_their_program_without_a_shell(stack, service):
    config = stack.container(service).image.attrs["Config"]
    assert {f"org.opencontainers.image.{word}" for word in ("title", "description", "licenses")} <= set(config["Labels"])
    assert config["Entrypoint"] == ["moedge"]


async def test_a_wrong_variable_stops_a_service_with_one_clear_line(stack):
    image = stack.container("broker").image.tags[0]
    run = stack.engine.containers.create(
        image, ["serve", "broker"], environment={"MOEDGE_BROKER_POLICY": "onto", "MOEDGE_BROKER_POLICI": "onto"}
    )
    try:
        run.start()
        ended = await asyncio.to_thread(run.wait, timeout=60)
        said = run.logs().decode().strip()
    finally:
        run.remove(force=True)
    assert ended["StatusCode"] != 0
    assert " ".join(said.split()) == "moedge: MOEDGE_BROKER_POLICI: no such setting; did you mean MOEDGE_BROKER_POLICY?"


async def test_several_brokers_share_the_edges_and_count_nothing_twice(scenarios, stack):
    """Each broker's tasks are in the work outstanding that the others see; all of it is gone when the load is."""
    async with Scaled(stack, "broker", 3):
        await stack.healthy(*stack.containers("broker"))
        brokers = [stack.address(container) for container in stack.containers("broker")]
        assert len(brokers) == 3
        async with scenarios.loaded("several brokers", "0 refused, all three serve, no work is left over", rate_per_s=8.0) as run:
            await run.wait(10.0)
        served = {event.producer_id for event in await run.judge(answered=1.0) if event.event_id.endswith(":dispatched:1")}
        assert len(served) == 3
        assert not run.calls.failed
        assert {call.status for call in run.calls.ended} == {OK}

        async def idle():
            return {await outstanding(address) for address in brokers} == {0}

        await stack.until(idle, "no broker sees work outstanding", 10.0)
        run.row.met = True
    await stack.whole()


async def outstanding(address):
    async with channel(address) as broker:
        listing = await broker_pb2_grpc.BrokerServiceStub(broker).ListEdges(broker_pb2.ListEdgesRequest(), timeout=5.0)
    return sum(edge.outstanding_tasks for edge in listing.edges)
