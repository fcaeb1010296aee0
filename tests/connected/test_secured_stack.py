"""A stack of real processes under TLS: a joined worker serves, a merge is built and rolled out, and no secret is told to anyone."""

from __future__ import annotations

import asyncio
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
import pytest

from moedge.v1 import broker_pb2, broker_pb2_grpc, inference_pb2, inference_pb2_grpc, worker_pb2
from services.runtime.clock import SystemClock
from services.tasks.sources import open_tasks
from tests.connected.local_stack import EDGE, MODEL, MOEDGE, ServiceProcess
from tests.fakes.processes import free_port
from tests.fakes.secured import Certificates, made

pytestmark = [pytest.mark.connected, pytest.mark.timeout(240)]

READY_WITHIN_S = 90.0
UPDATED_WITHIN_S = 90.0
CALL_S = 10.0
NUM_TASKS = 24  # an activation report needs 20


@dataclass(slots=True)
class SecuredStack:
    """Merger, controller, broker and one worker that joins by token."""

    folder: Path
    certificates: Certificates
    environment: dict[str, str]
    ports: dict[str, int] = field(default_factory=dict)
    services: dict[str, ServiceProcess] = field(default_factory=dict)

    def add(self, name: str, arguments: list[str]) -> None:
        self.ports[name] = free_port()
        files = {"cert": f"{name}.pem", "key": f"{name}.key", "ca": "ca.pem"}
        tls = [word for kind, file in files.items() for word in (f"--tls-{kind}", str(self.certificates.folder / file))]
        command = [name, "--port", str(self.ports[name]), *tls, *arguments]
        self.services[name] = ServiceProcess(name, command, self.environment, self.folder / f"{name}.log")
        self.services[name].start()

    def address(self, name: str) -> str:
        return f"127.0.0.1:{self.ports[name]}"

    def moedge(self, *arguments: str, token: str | None = "user", service: str = "broker") -> subprocess.CompletedProcess[str]:
        """The command as a user of this stack runs it."""
        environment = self.environment | {"MOEDGE_CA": str(self.certificates.folder / "ca.pem")}
        if token is not None:
            environment["MOEDGE_TOKEN_FILE"] = str(self.certificates.folder / f"{token}.token")
        return moedge(*arguments, "--target", self.address(service), environment=environment)

    async def until_ready(self) -> None:
        clock = SystemClock()
        give_up_at_s = clock.now_s() + READY_WITHIN_S
        async with self.certificates.user().channel(self.address("broker"), "broker") as channel:
            while not any(edge.state == worker_pb2.EDGE_STATE_READY for edge in await self.edges(channel)):
                ended = [service.tail() for service in self.services.values() if not service.is_running]
                tails = "\n".join(ended or [service.tail() for service in self.services.values()])
                assert not ended, tails
                assert clock.now_s() < give_up_at_s, tails
                await clock.sleep(0.2)

    async def edges(self, channel: grpc.aio.Channel) -> list[broker_pb2.Edge]:
        """None while the broker is not there."""
        try:
            return list((await broker_pb2_grpc.BrokerServiceStub(channel).ListEdges(broker_pb2.ListEdgesRequest(), timeout=CALL_S)).edges)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return []
            raise

    def said(self) -> str:
        return "\n".join(service.log.read_text(errors="replace") for service in self.services.values())


def moedge(*arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(MOEDGE), *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def stack(tmp_path_factory, kafka_bootstrap, redis_url) -> Iterator[SecuredStack]:
    folder = tmp_path_factory.mktemp("secured-stack")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MOEDGE_")}
    environment |= {
        "MOEDGE_KAFKA_BOOTSTRAP": kafka_bootstrap,
        "MOEDGE_REDIS_URL": f"{redis_url}/7",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }
    environment |= {"MOEDGE_LOG_LEVEL": "DEBUG"}
    stack = SecuredStack(folder, made(folder / "certs"), environment)
    edges_file = folder / "edges.toml"
    edges_file.write_text(EDGE.format(name="west", memory_bytes=1_800_000).replace("speed = 0.1", "speed = 1.0"))
    try:
        start(stack, folder, edges_file)
        yield stack
    finally:
        for service in stack.services.values():
            if service.is_running:
                service.kill()


def start(stack: SecuredStack, folder: Path, edges_file: Path) -> None:
    model = ["--model", str(MODEL), "--profiled-items", "32", "--measured-items", "4", "--device", "cpu"]
    stack.add("merger", [*model, "--cache-dir", str(folder / "merger")])
    at_merger = ["--merger-address", stack.address("merger")]
    # A build soon, whatever the shift, and rolled out whatever it promises.
    often = ["--trigger", "periodic", "--interval-s", "1", "--min-tokens", "1", "--mode", "paper"]
    stack.add("controller", [*at_merger, *often, "--consumer-group", f"controller-{stack.ports['merger']}"])
    tokens = ["--tokens-file", str(stack.certificates.folder / "tokens.toml")]
    stack.ports["metrics"] = free_port()
    stack.add("broker", [*at_merger, *tokens, "--default-region", "here", "--metrics-port", str(stack.ports["metrics"])])
    edge = ["--edges-file", str(edges_file), "--cache-dir", str(folder / "workers"), "--torch-threads", "1"]
    join = ["--join", stack.address("broker"), "--join-token-file", str(stack.certificates.folder / "join.token")]
    stack.add("worker", [*edge, *join])


async def test_a_task_is_served_and_a_merge_is_built_and_rolled_out_over_tls(stack):
    await stack.until_ready()
    items = open_tasks("toy", "heldout", items_per_type=8).items[:NUM_TASKS]
    clock = SystemClock()
    async with stack.certificates.user().channel(stack.address("broker"), "broker") as channel:
        inference = inference_pb2_grpc.InferenceServiceStub(channel)
        for item in items:
            request = inference_pb2.GenerateRequest(prompt=item.prompt, task_type=item.task_type, max_tokens=8)
            responses = [response async for response in inference.Generate(request, timeout=60)]
            assert responses[-1].WhichOneof("event") == "summary"
        give_up_at_s = clock.now_s() + UPDATED_WITHIN_S
        while not any(edge.updates for edge in await stack.edges(channel)):
            assert clock.now_s() < give_up_at_s, "\n".join(service.tail(25) for service in stack.services.values())
            await clock.sleep(0.2)


async def test_the_command_works_with_authority_and_token_and_names_what_is_wrong(stack, tmp_path):
    await stack.until_ready()
    other = made(tmp_path / "other")
    target = ["--target", stack.address("broker")]

    async def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(stack.moedge, *arguments, **options)

    async def run_plain(*arguments: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(lambda: moedge(*arguments, *target, environment=stack.environment))

    ended = await run("status")
    assert (ended.returncode, "west" in ended.stdout) == (0, True), ended.stderr
    assert (await run("infer", "yesterday lipafe gokeva caused which outcome", "--task", "alternative")).returncode == 0
    assert (await run("explain", "yesterday lipafe", "--task", "alternative")).returncode == 0
    replayed = await run("replay", "--rate", "2", "--duration", "2", "--tasks", "toy", "--json")
    assert replayed.returncode == 0, replayed.stderr

    ended = await run("edges", "pin", "west")
    assert (ended.returncode, ended.stderr) == (
        1, "moedge: PERMISSION_DENIED token 'user' may not call BrokerService/PinEdge; it needs scope operate\n",
    )  # fmt: skip
    assert (await run("edges", "pin", "west", token="operator")).returncode == 0
    assert (await run("edges", "unpin", "west", token="operator")).returncode == 0
    ended = await run("status", token=None)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert ended.stderr.startswith("moedge: UNAUTHENTICATED no token; send")
    ended = await run("status", "--token-file", str(other.folder / "user.token"))
    assert ended.stderr == "moedge: UNAUTHENTICATED this token is not known here; ask the operator for one\n"

    where = f"moedge: TLS handshake with broker at {stack.address('broker')}: "
    for ended in (await run_plain("status"), await run_plain("infer", "hello"), await run_plain("replay", "--tasks", "toy")):
        assert (ended.returncode, ended.stderr.count("\n")) == (3, 1), ended.stderr
        assert ended.stderr.startswith(where + "it speaks TLS and was called in plaintext"), ended.stderr
    ended = await run("status", "--ca", str(other.folder / "ca.pem"))
    assert (ended.returncode, ended.stderr.startswith(where + "the certificate is not signed by")) == (3, True), ended.stderr
    ended = await run("status", service="merger")
    assert ended.returncode == 3
    assert "the certificate is not for broker.moedge.internal" in ended.stderr


async def test_a_worker_with_a_wrong_join_token_ends_with_one_line(stack):
    join = ["--join", stack.address("broker"), "--join-token-file", str(stack.certificates.folder / "user.token")]
    tls = {kind: str(stack.certificates.folder / file) for kind, file in (("cert", "worker.pem"), ("key", "worker.key"), ("ca", "ca.pem"))}
    paths = [word for kind, path in tls.items() for word in (f"--tls-{kind}", path)]
    edge = ["--edges-file", str(stack.folder / "edges.toml"), "--cache-dir", str(stack.folder / "stranger")]
    environment = stack.environment | {"MOEDGE_LOG_LEVEL": "ERROR"}
    ended = await asyncio.to_thread(lambda: moedge("serve", "worker", *edge, *join, *paths, environment=environment))
    assert ended.returncode == 2, ended.stderr
    assert "MOEDGE_WORKER_JOIN: " in ended.stderr
    assert "token 'user' may not call BrokerService/Join; it needs scope join" in ended.stderr
    assert ended.stderr.count("\n") == 1


async def test_no_secret_is_in_a_log_or_a_metric(stack):
    """Runs last: all of the above was logged at DEBUG."""
    await stack.until_ready()
    tokens = [path.read_text().strip() for path in stack.certificates.folder.glob("*.token")]
    keys = [line for path in stack.certificates.folder.glob("*.key") for line in path.read_text().splitlines()[1:-1]]
    url = f"http://127.0.0.1:{stack.ports['metrics']}/metrics"
    metrics = (await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=CALL_S).read())).decode()
    said = stack.said() + metrics
    assert "BrokerService/PinEdge by token operator" in said
    assert len(tokens) == 4
    assert not [secret for secret in (*tokens, *keys) if secret in said]
