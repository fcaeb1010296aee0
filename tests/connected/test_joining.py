"""An edge worker on another machine: in a network of its own, with one address to start from. Needs root and iproute2."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from moedge.v1 import broker_pb2, inference_pb2, inference_pb2_grpc, worker_pb2
from services.runtime.clock import SystemClock
from services.runtime.net import channel, open_stream
from tests.connected.local_stack import MODEL, MOEDGE, ServiceProcess
from tests.fakes.looking import edge_seen
from tests.fakes.processes import KAFKA_START, KafkaProcess, RedisProcess, free_port
from tests.fakes.waiting import until

pytestmark = [pytest.mark.connected, pytest.mark.timeout(240)]

CLOCK = SystemClock()
READY_WITHIN_S = 120.0
EDGES_FILE = """
[[edges]]
name = "small"
memory_bytes = "22% experts"
device = "cpu"
max_batch = 2
regions.here = { latency_s = 0.002, uplink_bytes_per_s = 1e7, downlink_bytes_per_s = 1e7 }
"""


@dataclass(frozen=True, slots=True)
class Away:
    """A network namespace with one link to this machine's."""

    name: str
    here: str  # this machine's address on the link
    there: str

    def command(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *words]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def another_network() -> Iterator[Away]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("a network of its own needs root and iproute2")
    number = random.SystemRandom().randrange(1 << 14)
    net = f"10.213.{number >> 6}.{4 * (number & 63)}"
    prefix, _, last = net.rpartition(".")
    away = Away(f"moedge{number}", f"{prefix}.{int(last) + 1}", f"{prefix}.{int(last) + 2}")
    inner, outer = f"mi{number}", f"mo{number}"
    try:
        _ip("netns", "add", away.name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    try:
        _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", away.name)
        _ip("addr", "add", f"{away.here}/30", "dev", outer)
        _ip("link", "set", outer, "up")
        _ip("-n", away.name, "addr", "add", f"{away.there}/30", "dev", inner)
        _ip("-n", away.name, "link", "set", inner, "up")
        _ip("-n", away.name, "link", "set", "lo", "up")
        yield away
    finally:
        _ip("netns", "del", away.name)


def kafka_for(away: Away, directory: Path) -> KafkaProcess:
    """Kafka that is told of as loopback to those here, and by the link's address to those there."""
    inside, outside = free_port(2), free_port()
    settings = (
        f"listeners=PLAINTEXT://127.0.0.1:{inside},EXTERNAL://{away.here}:{outside},CONTROLLER://127.0.0.1:{inside + 1}",
        f"advertised.listeners=PLAINTEXT://127.0.0.1:{inside},EXTERNAL://{away.here}:{outside},CONTROLLER://127.0.0.1:{inside + 1}",
        "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,EXTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name=PLAINTEXT",
    )
    return KafkaProcess(inside, directory / "data", settings)


class Machines:
    """Here: Kafka, Redis, merger and broker. There: one worker."""

    def __init__(self, directory: Path, away: Away, kafka: KafkaProcess, redis: RedisProcess) -> None:
        self.away = away
        self.directory = directory
        outside = kafka.settings[0].partition("EXTERNAL://")[2].partition(",")[0]
        self.merger_port, self.broker_port = free_port(), free_port()
        inside = {"MOEDGE_KAFKA_BOOTSTRAP": kafka.bootstrap, "MOEDGE_REDIS_URL": redis.url, "MOEDGE_HOST": "0.0.0.0"}
        join = {
            "MOEDGE_BROKER_JOIN_KAFKA_BOOTSTRAP": outside,
            "MOEDGE_BROKER_JOIN_REDIS_URL": f"redis://{away.here}:{redis.port}",
            "MOEDGE_BROKER_JOIN_MERGER_ADDRESS": f"{away.here}:{self.merger_port}",
            "MOEDGE_BROKER_MERGER_ADDRESS": f"127.0.0.1:{self.merger_port}",
        }
        model = ["--model", str(MODEL), "--profiled-items", "32", "--measured-items", "4", "--device", "cpu"]
        merger = ["merger", "--port", str(self.merger_port), *model, "--cache-dir", str(directory / "merger")]
        self.merger = self._process("merger", merger, inside)
        self.broker = self._process("broker", ["broker", "--port", str(self.broker_port)], inside | join)

    @property
    def join(self) -> str:
        return f"{self.away.here}:{self.broker_port}"

    def worker_command(self, *more: str) -> list[str]:
        edges_file = self.directory / "edges.toml"
        edges_file.write_text(EDGES_FILE)
        options = ["--join", self.join, "--host", "0.0.0.0", "--port", "50051", "--edges-file", str(edges_file)]
        return [str(MOEDGE), "serve", "worker", *options, "--cache-dir", str(self.directory / "worker"), "--torch-threads", "1", *more]

    def _process(self, name: str, arguments: list[str], environment: dict[str, str]) -> ServiceProcess:
        return ServiceProcess(name, arguments, plain_environment() | environment, self.directory / f"{name}.log")


def plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MOEDGE_")} | {
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }


@contextmanager
def started(away: Away, command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the other network. `ip netns exec` becomes the command it is given."""
    with log.open("ab") as file, subprocess.Popen(away.command(*command), env=plain_environment(), stdout=file, stderr=file) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(service: ServiceProcess) -> None:
    if service.is_running:
        service.kill()


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    if not KAFKA_START.exists() or shutil.which("java") is None or shutil.which("redis-server") is None:
        pytest.skip("no Kafka or no Redis on this machine")
    directory = tmp_path_factory.mktemp("joining")
    with ExitStack() as stack:
        away = stack.enter_context(another_network())
        kafka = kafka_for(away, directory)
        stack.callback(kafka.stop, kill=True)
        kafka.start()
        redis = RedisProcess(free_port(), directory, ("127.0.0.1", away.here))
        stack.callback(redis.stop)
        redis.start()
        found = Machines(directory, away, kafka, redis)
        for service in (found.merger, found.broker):
            stack.callback(ended, service)
        yield found


async def edge_named(machines: Machines, name: str, state: worker_pb2.EdgeState.ValueType) -> broker_pb2.Edge:
    def alive() -> None:
        assert machines.broker.is_running, machines.broker.tail()

    return await edge_seen(machines.join, name, state, READY_WITHIN_S, alive)


async def logged(log: Path, words: str, times: int = 1) -> None:
    await until(lambda: log.read_text().count(words) >= times, 60.0, what=f"{words!r} in {log}")


async def test_a_worker_elsewhere_waits_for_the_broker_then_enrols_with_one_address_and_serves(machines):
    log = machines.directory / "worker.log"
    log.touch()
    with started(machines.away, machines.worker_command("--name", "barn", "--advertise", machines.away.there), log):
        await logged(log, f"waiting for the broker at {machines.join}", times=2)
        machines.merger.start()
        machines.broker.start()
        edge = await edge_named(machines, "barn", worker_pb2.EDGE_STATE_READY)
        assert edge.address == f"{machines.away.there}:50051"
        assert 0 < edge.model_bytes <= edge.memory_bytes
        async with channel(machines.join) as users:
            stub = inference_pb2_grpc.InferenceServiceStub(users)
            request = inference_pb2.GenerateRequest(prompt="yesterday lipafe gokeva caused which outcome", task_type="alternative")
            async with open_stream(stub.Generate(request, timeout=30)) as stream:
                responses = [response async for response in stream]
        assert responses[-1].summary.edge_id == "barn"


async def test_without_an_address_to_advertise_it_tells_the_one_that_leads_to_the_broker(machines):
    log = machines.directory / "unadvertised.log"
    with started(machines.away, machines.worker_command("--name", "shed"), log):
        edge = await edge_named(machines, "shed", worker_pb2.EDGE_STATE_READY)
        assert edge.address == f"{machines.away.there}:50051"


async def test_an_edge_whose_advertised_address_leads_nowhere_is_told_of_once_and_shown_unreachable(machines):
    log = machines.directory / "lost.log"
    with started(machines.away, machines.worker_command("--name", "lost", "--advertise", "10.255.255.1:50051"), log):
        await edge_named(machines, "lost", worker_pb2.EDGE_STATE_UNREACHABLE)
        await CLOCK.sleep(3.0)  # some heartbeats more: it is not told again with each
    assert machines.broker.log.read_text().count("edge lost is unreachable") == 1


def test_a_broker_that_runs_embedded_refuses_in_one_line(machines, tmp_path):
    port = free_port()
    environment = plain_environment() | {"MOEDGE_HOST": "0.0.0.0"}
    broker = ServiceProcess("embedded", ["broker", "--port", str(port)], environment, tmp_path / "embedded.log")
    broker.start()
    try:
        command = machines.away.command(*machines.worker_command("--join", f"{machines.away.here}:{port}"))
        ran = subprocess.run(command, env=plain_environment(), capture_output=True, text=True, timeout=60, check=False)
    finally:
        broker.kill()
    assert ran.returncode != 0
    said = [line for line in ran.stderr.splitlines() if "MOEDGE_WORKER_JOIN" in line]
    assert len(said) == 1, ran.stderr
    assert "this broker runs without kafka_bootstrap, redis_url, merger_address" in said[0]
