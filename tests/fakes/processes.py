"""Kafka and Redis as local processes on free ports, to freeze, kill and start again. Skips the test where this machine has neither."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

KAFKA_START = Path(__file__).resolve().parents[3] / "shared" / "kafka" / "start.sh"
START_TIMEOUT_S = 120


def free_port(count: int = 1) -> int:
    """The first of `count` neighbouring ports that were free a moment ago, below the range that outgoing connections use."""
    for _ in range(100):
        port = random.SystemRandom().randrange(20000, 32000, 2)
        sockets = [socket.socket() for _ in range(count)]
        try:
            for offset, probe in enumerate(sockets):
                probe.bind(("127.0.0.1", port + offset))
        except OSError:
            continue
        finally:
            for probe in sockets:
                probe.close()
        return port
    raise RuntimeError("no free port")


def wait_until_stopped(pid: int) -> None:
    """Wait until every thread of a process that was sent SIGSTOP has stopped."""
    for _ in range(500):
        # The third field of /proc/PID/task/TID/stat, after the name in brackets, is the thread's state.
        stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
        if all(stat.rpartition(")")[2].split()[0] in "TtZX" for stat in stats):
            return
        threading.Event().wait(0.01)
    raise RuntimeError(f"process {pid} did not stop")


@dataclass(slots=True)
class KafkaProcess:
    """One broker. Its topics outlive `kill` and `start`."""

    port: int
    data: Path
    settings: tuple[str, ...] = ()  # lines of its server.properties besides

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [str(KAFKA_START), "--port", str(self.port), "--data", str(self.data)]
        command += [word for setting in self.settings for word in ("--set", setting)]
        # start.sh leaves the broker behind with our pipes: its output goes to a file, or we would wait for the broker itself.
        self.data.mkdir(parents=True, exist_ok=True)
        with (self.data / "start.txt").open("w") as out:
            try:
                failed = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, timeout=START_TIMEOUT_S, check=False).returncode
            except subprocess.TimeoutExpired:
                failed = 1
        if failed:
            self.stop(kill=True)
            raise RuntimeError(f"Kafka did not start: {(self.data / 'start.txt').read_text()[-2000:]}")

    def stop(self, *, kill: bool = False) -> None:
        self.thaw()
        command = [str(KAFKA_START), "stop", "--data", str(self.data), *(["--kill"] if kill else [])]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=START_TIMEOUT_S, check=False)

    def freeze(self) -> None:
        """Returns once no thread of it runs any more: on a busy machine SIGSTOP alone leaves it time to acknowledge a record."""
        self._signal(signal.SIGSTOP)
        pidfile = self.data / "broker.pid"
        if pidfile.exists():
            wait_until_stopped(int(pidfile.read_text()))

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        pidfile = self.data / "broker.pid"
        if pidfile.exists():
            try:
                os.killpg(int(pidfile.read_text()), number)
            except ProcessLookupError:
                return


@contextmanager
def started_kafka(directory: Path) -> Iterator[KafkaProcess]:
    if not KAFKA_START.exists():
        pytest.skip("no Kafka: ../shared/kafka/start.sh is not beside the checkout")
    if shutil.which("java") is None:
        pytest.skip("no Kafka: java is not installed")
    kafka = KafkaProcess(free_port(2), directory / "data")
    try:
        kafka.start()
    except RuntimeError:  # another process may have taken the port in the meantime
        kafka = KafkaProcess(free_port(2), directory / "data-again")
        kafka.start()
    try:
        yield kafka
    finally:
        kafka.stop(kill=True)


@dataclass(slots=True)
class RedisProcess:
    port: int
    directory: Path
    hosts: tuple[str, ...] = ("127.0.0.1",)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", *self.hosts, "--protected-mode", "no", "--save", "", "--appendonly", "no"]
        options += ["--dir", str(self.directory)]
        self.process = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(100):
            with socket.socket() as probe:
                probe.settimeout(0.1)
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            try:
                self.process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
            break
        raise RuntimeError("redis-server did not start")

    def stop(self) -> None:
        if self.process is not None:
            self.thaw()
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def freeze(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGSTOP)
            wait_until_stopped(self.process.pid)

    def thaw(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)


@contextmanager
def started_redis(directory: Path) -> Iterator[RedisProcess]:
    if shutil.which("redis-server") is None:
        pytest.skip("no Redis: redis-server is not installed")
    server = RedisProcess(free_port(), directory)
    server.start()
    try:
        yield server
    finally:
        server.stop()
