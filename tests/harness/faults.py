"""Faults of a compose stack, each with `inject()` and `heal()`; used as a context manager a fault is always healed.

`async with paused(stack, "kafka"): ...` injects on entering and heals on leaving, whatever happened in between.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from docker.errors import APIError
from docker.models.containers import Container

from tests.harness.compose import ComposeStack

STOP_WITHIN_S = 30


@dataclass(slots=True)
class ContainerFault:
    """What is done to some containers and how it is undone. Healing what was never hurt, or was healed already, changes nothing."""

    name: str
    stack: ComposeStack
    containers: list[Container]
    hurt: Callable[[Container], object]
    mend: Callable[[Container], object]
    began_at_s: float | None = None
    healed_at_s: float | None = None

    async def inject(self) -> None:
        self.began_at_s, self.healed_at_s = self.stack.clock.now_s(), None
        async with asyncio.TaskGroup() as group:
            for container in self.containers:
                group.create_task(asyncio.to_thread(self.hurt, container))

    async def heal(self) -> None:
        if self.began_at_s is None or self.healed_at_s is not None:
            return
        async with asyncio.TaskGroup() as group:
            for container in self.containers:
                group.create_task(asyncio.to_thread(self.mend, container))
        self.healed_at_s = self.stack.clock.now_s()

    async def __aenter__(self) -> Self:
        try:
            await self.inject()
        except BaseException:
            await self.heal()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.heal()


def _started(container: Container) -> None:
    container.reload()
    if container.status != "running":
        container.start()


def _killed(container: Container) -> None:
    container.kill("SIGKILL")
    container.wait()


def _stopped(container: Container) -> None:
    container.stop(timeout=STOP_WITHIN_S)


def _unpaused(container: Container) -> None:
    container.reload()
    if container.status == "paused":
        container.unpause()


def killed(stack: ComposeStack, *services: str, which: list[Container] | None = None) -> ContainerFault:
    """SIGKILL; healing starts the same containers again."""
    return ContainerFault(f"kill {' '.join(services)}", stack, which or _all(stack, services), _killed, _started)


def stopped(stack: ComposeStack, *services: str, which: list[Container] | None = None) -> ContainerFault:
    """SIGTERM and time to drain; healing starts the same containers again."""
    return ContainerFault(f"stop {' '.join(services)}", stack, which or _all(stack, services), _stopped, _started)


def paused(stack: ComposeStack, *services: str, which: list[Container] | None = None) -> ContainerFault:
    """Frozen: its connections stay open and nothing answers."""
    return ContainerFault(f"pause {' '.join(services)}", stack, which or _all(stack, services), lambda c: c.pause(), _unpaused)


def cut_off(stack: ComposeStack, container: Container, *directions: str) -> ContainerFault:
    """Its packets are dropped, INPUT, OUTPUT or both, as a broken network does: no connection is told. Needs root and iptables.

    Not `docker network disconnect`: a container that is connected again may get another address, which no broken network gives it.
    """
    chains = directions or ("INPUT", "OUTPUT")

    def run(which: Container, action: str) -> None:
        which.reload()
        for chain in chains:
            command = [
                "nsenter",
                "-t",
                str(which.attrs["State"]["Pid"]),
                "-n",
                "iptables",
                action,
                chain,
                "!",
                "-i" if chain == "INPUT" else "-o",
                "lo",
            ]
            subprocess.run([*command, "-j", "DROP"], check=True, capture_output=True, timeout=STOP_WITHIN_S)

    return ContainerFault(f"cut off {container.name}", stack, [container], lambda c: run(c, "-I"), lambda c: run(c, "-D"))


def slowed(stack: ComposeStack, container: Container, ratio: float = 10.0) -> ContainerFault:
    """`ratio` times less processor than its limit."""
    container.reload()
    limit = int(container.attrs["HostConfig"]["NanoCpus"]) / 1e9
    if not limit:
        raise ValueError(f"{container.name} has no processor limit to lower")

    def set_limit(which: Container, cpus: float) -> None:
        # The Docker package knows only quotas, which the engine refuses beside a limit in processors.
        subprocess.run(["docker", "update", f"--cpus={cpus:.3f}", which.id or ""], check=True, capture_output=True, timeout=STOP_WITHIN_S)

    return ContainerFault(
        f"slow {container.name}", stack, [container], lambda c: set_limit(c, limit / ratio), lambda c: set_limit(c, limit)
    )


@dataclass(slots=True)
class Scaled:
    """Another number of containers of a service; healing brings the number back that there was."""

    stack: ComposeStack
    service: str
    number: int
    before: int = field(init=False)

    def __post_init__(self) -> None:
        self.before = len(self.stack.containers(self.service))

    async def inject(self) -> None:
        await self.to(self.number)

    async def heal(self) -> None:
        await self.to(self.before)

    async def to(self, number: int) -> None:
        """Those that there are stay as they are; leaving ones get SIGTERM and time to drain."""
        arguments = ("up", "-d", "--no-recreate", "--no-build", "--no-deps", "--scale", f"{self.service}={number}", self.service)
        await asyncio.to_thread(self.stack.compose, *arguments)

    async def __aenter__(self) -> Self:
        await self.inject()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.heal()


async def flushed(stack: ComposeStack) -> None:
    """Redis forgets everything. Nothing to heal: what is in it is written again by those who know it."""
    code, output = await asyncio.to_thread(stack.container("redis").exec_run, ["redis-cli", "FLUSHALL"])
    if code:
        raise APIError(f"FLUSHALL: {output!r}")


def _all(stack: ComposeStack, services: tuple[str, ...]) -> list[Container]:
    return [container for service in services for container in stack.containers(service)]
