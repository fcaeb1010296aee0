"""The secure overlay in containers: a project of its own beside the stack, with the smallest worker, and gone again afterwards."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from docker.client import DockerClient

from services.runtime.clock import SystemClock
from tests.fakes.processes import free_port
from tests.fakes.secured import Certificates, made, path_of, reflected, status_of
from tests.harness.compose import GRPC_PORT, REPOSITORY

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

PROJECT = "moedge-secure"
FILES = ("-f", "docker-compose.yml", "-f", "infra/compose.secure.yml")
SERVICES = ("merger", "controller", "broker", "worker-small")
MOEDGE = Path(sys.executable).with_name("moedge")
READY_WITHIN_S = 120.0


@dataclass(frozen=True, slots=True)
class SecureStack:
    engine: Any
    certificates: Certificates
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def compose(self, *arguments: str, timeout_s: float = 300.0) -> str:
        environment = os.environ | {"CERTS_DIR": str(self.certificates.folder), "BROKER_PORTS": str(self.port)}
        command = ["docker", "compose", "-p", PROJECT, *FILES, *arguments]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    def container(self, service: str) -> Any:
        label = [f"com.docker.compose.project={PROJECT}", f"com.docker.compose.service={service}"]
        return self.engine.containers.list(filters={"label": label})[0]

    def inner_address(self, service: str) -> str:
        """As this machine reaches a container over the bridge."""
        networks = self.container(service).attrs["NetworkSettings"]["Networks"]
        return f"{networks[f'{PROJECT}_default']['IPAddress']}:{GRPC_PORT}"

    def moedge(self, *arguments: str, token: str | None = "user", ca: bool = True) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MOEDGE_")}
        options = ["--target", self.address]
        if ca:
            options += ["--ca", str(self.certificates.folder / "ca.pem")]
        if token is not None and ca:
            options += ["--token-file", str(self.certificates.folder / f"{token}.token")]
        command = [str(MOEDGE), *arguments, *options]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def secure(tmp_path_factory) -> Iterator[SecureStack]:
    engine = DockerClient.from_env(timeout=60)
    stack = SecureStack(engine, made(tmp_path_factory.mktemp("secure") / "certs"), free_port())
    try:
        # Healthy means that every probe spoke TLS. The images are those that `make up` built.
        stack.compose("up", "--detach", "--no-build", "--wait", "--wait-timeout", "240", *SERVICES)
        yield stack
    finally:
        stack.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "5")
        engine.close()


@pytest.fixture
async def ready(secure: SecureStack) -> SecureStack:
    clock = SystemClock()
    give_up_at_s = clock.now_s() + READY_WITHIN_S
    while "ready" not in (asked := await asyncio.to_thread(secure.moedge, "status")).stdout:
        assert clock.now_s() < give_up_at_s, asked.stdout + asked.stderr
        await clock.sleep(0.5)
    return secure


async def test_a_task_with_a_token_is_served_and_without_one_refused(ready):
    words = ("infer", "yesterday lipafe gokeva caused which outcome", "--task", "alternative")
    served = await asyncio.to_thread(ready.moedge, *words)
    assert served.returncode == 0, served.stderr
    refused = await asyncio.to_thread(lambda: ready.moedge(*words, token=None))
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert refused.stderr.startswith("moedge: UNAUTHENTICATED no token"), refused.stderr
    plain = await asyncio.to_thread(lambda: ready.moedge(*words, ca=False))
    assert (plain.returncode, "it speaks TLS and was called in plaintext" in plain.stderr) == (3, True), plain.stderr


async def test_every_rpc_of_the_published_port_but_health_needs_a_token(ready):
    methods = await reflected(ready.certificates.user("user"), ready.address, "broker")
    assert len(methods) > 10
    async with ready.certificates.user(None).channel(ready.address, "broker") as nobody:
        for method in methods:
            code = await status_of(nobody, method)
            health = method.containing_service.full_name == "grpc.health.v1.Health"
            assert (code is grpc.StatusCode.UNAUTHENTICATED) is not health, (path_of(method), code)


@pytest.mark.parametrize("service", ["merger", "worker-small", "controller"])
async def test_services_inside_talk_to_certificates_of_their_roles_only(ready, service):
    role = service.partition("-")[0]
    address = await asyncio.to_thread(ready.inner_address, service)
    methods = await reflected(ready.certificates.service("worker"), address, role)
    stranger = ready.certificates.signed(["somebody.example.org"], role=None)
    async with stranger.channel(address, role) as channel:
        for method in methods:
            code = await status_of(channel, method)
            health = method.containing_service.full_name == "grpc.health.v1.Health"
            assert (code is grpc.StatusCode.UNAUTHENTICATED) is not health, (path_of(method), code)
    async with ready.certificates.user().channel(address, role) as user:
        assert await status_of(user, methods[0]) is grpc.StatusCode.UNAVAILABLE
    assert "it asks for a certificate of the stack" in await ready.certificates.user().trouble(address, role)


async def test_grpcurl_lists_with_a_token_and_not_without(ready, shared_directory):
    grpcurl = shared_directory / "clients" / "grpcurl"
    if not grpcurl.exists():
        pytest.skip("no grpcurl in ../shared/clients")
    folder = ready.certificates.folder
    token = (folder / "user.token").read_text().strip()

    async def listed(*options: str) -> subprocess.CompletedProcess[str]:
        command = [str(grpcurl), "-cacert", str(folder / "ca.pem"), *options, f"localhost:{ready.port}", "list"]
        return await asyncio.to_thread(lambda: subprocess.run(command, capture_output=True, text=True, timeout=30, check=False))

    with_token = await listed("-H", f"authorization: Bearer {token}")
    assert "moedge.v1.InferenceService" in with_token.stdout, with_token.stderr
    without = await listed()
    assert (without.returncode, "Unauthenticated" in without.stderr) == (1, True), without.stderr


async def test_the_load_generator_inside_has_a_token_of_its_own(ready):
    words = ("run", "--rm", "--no-deps", "load", "replay", "--rate", "2", "--duration", "3", "--tasks", "toy", "--json")
    said = await asyncio.to_thread(ready.compose, *words)
    assert '"accuracy"' in said


async def test_no_secret_is_in_an_environment_or_a_log(ready):
    """Runs last: the calls of the others were logged."""
    folder = ready.certificates.folder
    secrets = [path.read_text().strip() for path in folder.glob("*.token")]
    secrets += [line for path in folder.glob("*.key") for line in path.read_text().splitlines()[1:-1]]

    def said() -> str:
        containers = [ready.container(service) for service in SERVICES]
        return "".join(str(container.attrs) + container.logs().decode(errors="replace") for container in containers)

    text = await asyncio.to_thread(said)
    assert len(secrets) > 8
    assert not [secret for secret in secrets if secret in text]
