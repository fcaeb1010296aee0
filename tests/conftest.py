"""Fixtures for every kind of test. What needs another process lives in `tests/fakes/processes.py` and skips with a reason."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from services.runtime.clock import SystemClock, VirtualClock
from tests.fakes.processes import started_kafka, started_redis

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests too")
    parser.addoption("--e2e", action="store_true", help="drive and break the compose stack; without one that is up the tests fail")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that cannot run here are skipped with the reason, not left out silently."""
    cannot = {
        "slow": None if config.getoption("--slow") else "slow: run with --slow (make test SLOW=1)",
        "e2e": None if config.getoption("--e2e") else _no_e2e(items),
        "gpu": None if Path("/dev/nvidia0").exists() else "no CUDA device",
    }
    for item in items:
        for marker, reason in cannot.items():
            if reason is not None and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


def _no_e2e(items: list[pytest.Item]) -> str:
    if not any(item.get_closest_marker("e2e") for item in items):
        return ""
    if shutil.which("docker") is None:
        return "no Docker engine"
    listed = subprocess.run(["docker", "compose", "ls", "--quiet"], capture_output=True, text=True, timeout=30, check=False)
    if listed.returncode:
        return "no Docker engine"
    return "make e2e: run with --e2e" if "moedge" in listed.stdout.split() else "the stack is not up: make up"


@pytest.fixture(scope="session")
def shared_directory() -> Path:
    """Data, checkpoints and a Kafka beside the checkout, where a development machine has them."""
    directory = REPOSITORY.parent / "shared"
    if not directory.is_dir():
        pytest.skip("no ../shared directory beside the checkout")
    return directory


@pytest.fixture
def clock() -> SystemClock:
    return SystemClock()


@pytest.fixture
def virtual_clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture(scope="session")
def kafka_bootstrap(tmp_path_factory: pytest.TempPathFactory):
    """A real Apache Kafka for the session: host:port."""
    with started_kafka(tmp_path_factory.mktemp("kafka")) as kafka:
        yield kafka.bootstrap


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory):
    """A real redis-server for the session."""
    with started_redis(tmp_path_factory.mktemp("redis")) as redis_server:
        yield redis_server.url
