"""Fixtures of the tests that drive and break the compose stack: the stack, the Kafka tap, a quiet phase to compare with, the table."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.tasks.sources import open_tasks
from tests.e2e.scenario import Scenarios, quiet_phase
from tests.harness import table
from tests.harness.compose import REPOSITORY, ComposeStack
from tests.harness.tap import Tap, open_tap

OUT = REPOSITORY / "out" / "e2e"
ITEMS_PER_TYPE = 8
ROWS = pytest.StashKey[list[table.Row]]()


@dataclass(frozen=True, slots=True)
class Counts:
    """How often and how long: enough for a build, or what is promised."""

    worker_kills: int = 5
    broker_kills: int = 2
    rolls: int = 1
    all_dead_s: float = 8.0
    kafka_pause_s: float = 20.0
    redis_pause_s: float = 10.0
    build_kills: int = 1
    swap_kills: int = 3
    cuts: int = 0
    cut_s: float = 30.0
    slow_s: float = 30.0
    frozen_s: float = 20.0
    absent_s: float = 0.0
    cold_starts: int = 1


FULL = Counts(
    worker_kills=50,
    broker_kills=20,
    rolls=10,
    all_dead_s=15.0,
    kafka_pause_s=60.0,
    redis_pause_s=30.0,
    build_kills=5,
    swap_kills=20,
    cuts=10,
    absent_s=600.0,
    cold_starts=10,
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", choices=("short", "full"), default="short", help="counts and durations of faults")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if rows:
        terminalreporter.section("faults")
        terminalreporter.write_line(table.text(rows))
        table.write(rows, OUT)
        terminalreporter.write_line(f"also in {OUT}: faults.md, faults.json, and a folder of records for each")


@pytest.fixture(scope="session")
def counts(request: pytest.FixtureRequest) -> Counts:
    return FULL if request.config.getoption("--faults") == "full" else Counts()


@pytest.fixture(scope="session")
def compose_stack() -> Iterator[ComposeStack]:
    """Raises where there is none: the tests were asked for."""
    stack = ComposeStack.running()
    yield stack
    stack.engine.close()


@pytest.fixture
async def stack(compose_stack: ComposeStack) -> ComposeStack:
    """Every container healthy and every edge ready, whatever the test before left."""
    await compose_stack.whole()
    return compose_stack


@pytest.fixture
async def target(stack: ComposeStack) -> str:
    """Where the first broker is published now."""
    return stack.published(stack.container("broker"))


@pytest.fixture(scope="session")
def tap(compose_stack: ComposeStack) -> Iterator[Tap]:
    with open_tap(compose_stack) as tap:
        yield tap


@pytest.fixture(scope="session")
def out() -> Path:
    OUT.mkdir(parents=True, exist_ok=True)
    return OUT


@pytest.fixture(scope="session")
def items():
    return open_tasks("toy", "heldout", items_per_type=ITEMS_PER_TYPE).items


@pytest.fixture(scope="session")
def quiet(compose_stack, items):
    """Calls of a phase in which nothing was broken, at the rate that faults are run at."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(quiet_phase(compose_stack, items))
    finally:
        loop.close()


@pytest.fixture
def scenarios(stack, tap, items, quiet, out, request) -> Scenarios:
    return Scenarios(stack, tap, items, quiet, out, request.config.stash[ROWS])
