"""The recorder and the table of fault tests: what a user who retries met on the way is kept, and counted where the fault was."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from services.runtime.clock import SystemClock
from services.runtime.net import channel
from services.tasks.values import TaskItem
from tests.fakes.waiting import until
from tests.harness.faults import ContainerFault
from tests.harness.history import OK, Call, Fault, Try
from tests.harness.recorder import Calls, fleet_channel, fleet_target
from tests.harness.table import Latency, Row, markdown, num_refused, slowest_recovery_s, text
from tests.unit.broker_harness import running

ITEM = TaskItem("facts", "item-1", "which word", ("a",))


async def test_a_refused_call_is_sent_again_until_an_edge_is_there_and_the_refusals_are_kept():
    async with running() as house, channel(house.broker.address) as connection:
        calls = Calls(connection, "call", 10.0, retrying=True)
        sending = asyncio.create_task(calls.send([ITEM], [0.0]))
        await until(lambda: bool(calls.in_flight), what="a call in flight")
        await SystemClock().sleep(0.3)
        await house.worker("west")
        await sending
    call = calls.ended[0]
    assert (call.status, call.edge_id) == (OK, "west")
    assert {(met.status, met.reason) for met in call.refusals} == {("UNAVAILABLE", "NO_EDGE")}
    assert call.intended_at_s is not None
    assert call.end_at_s is not None
    assert call.intended_at_s <= call.sent_at_s <= call.tries[0].ended_at_s < call.end_at_s


async def test_without_retrying_the_first_refusal_ends_the_call():
    async with running() as house, channel(house.broker.address) as connection:
        calls = Calls(connection, "call", 10.0)
        await calls.send([ITEM], [0.0])
    assert [(call.status, call.reason, call.tries) for call in calls.ended] == [("UNAVAILABLE", "NO_EDGE", ())]
    assert calls.failed == calls.ended


async def test_poured_calls_come_at_the_rate_that_was_asked_for_until_they_are_stopped():
    async with running() as house, channel(house.broker.address) as connection:
        await house.worker("west")
        calls, stop = Calls(connection, "call", 10.0), asyncio.Event()
        pouring = asyncio.create_task(calls.pour([ITEM], 200.0, np.random.default_rng(0), stop, burst=4))
        await until(lambda: len(calls.sent) >= 100, what="a hundred calls")
        stop.set()
        await pouring
    assert len(calls.ended) == len(calls.sent)
    assert len(calls.sent) % 4 == 0
    intended = [call.intended_at_s for call in calls.ended if call.intended_at_s is not None]
    span_s = max(intended) - min(intended)
    assert len(calls.sent) / span_s == pytest.approx(200.0, rel=0.5)


async def test_a_fleet_is_reached_at_whichever_of_its_ports_answers():
    async with running() as house:
        await house.worker("west")
        port = int(house.broker.address.rpartition(":")[2])
        async with fleet_channel(fleet_target([1, port, 2])) as connection:
            calls = Calls(connection, "call", 10.0)
            await calls.send([ITEM] * 3, [0.0] * 3)
    assert [call.status for call in calls.ended] == [OK] * 3


class Container:
    """What a fault needs of one."""

    def __init__(self, *, breaks: bool = False) -> None:
        self.log: list[str] = []
        self.breaks = breaks

    def hurt(self) -> None:
        self.log.append("hurt")
        if self.breaks:
            raise RuntimeError("the engine said no")


class Stack:
    clock = SystemClock()


def make_fault(container) -> ContainerFault:
    stack: Any = Stack()
    hurt: Any = Container.hurt
    mend: Any = lambda c: c.log.append("mended")  # noqa: E731
    return ContainerFault("pause it", stack, [container], hurt, mend)


async def test_a_fault_is_healed_once_whatever_happens_meanwhile():
    container = Container()
    fault = make_fault(container)
    with pytest.raises(ValueError, match="test"):
        async with fault:
            raise ValueError("test")
    await fault.heal()
    assert container.log == ["hurt", "mended"]


async def test_a_fault_that_could_not_be_injected_is_healed_too():
    container = Container(breaks=True)
    with pytest.raises(ExceptionGroup):
        async with make_fault(container):
            raise AssertionError("unreachable")
    assert container.log == ["hurt", "mended"]


FAULT = Fault(10.0, 20.0, name="kill")
REFUSED = Call("a", 11.0, 30.0, 14.0, OK, attempts=1, tries=(Try(11.0, 12.5, "UNAVAILABLE"), Try(12.6, 13.0, "UNAVAILABLE")))
MOVED = Call("b", 9.0, 30.0, 15.0, OK, attempts=2)
EARLIER = Call("c", 1.0, 30.0, 2.0, "UNAVAILABLE")


def test_only_what_was_met_within_the_fault_counts():
    calls = [REFUSED, MOVED, EARLIER]
    assert num_refused(calls, [FAULT]) == 2
    assert slowest_recovery_s(calls, [FAULT]) == 5.0  # the moved task's answer
    assert slowest_recovery_s([REFUSED], [FAULT]) == 3.0
    assert slowest_recovery_s([EARLIER], [FAULT]) == 0.0


def test_the_table_says_what_was_not_met():
    rows = [Row("kill", "0 refused", sent=3, answered=2, refused=2, recovery_s=5.0, latency=Latency.of([REFUSED, MOVED, EARLIER]))]
    assert "2 (66.7%)" in text(rows)
    assert text(rows).endswith("NO")
    assert markdown(rows).splitlines()[2].startswith("| kill | 3 | 2 (66.7%) | 2 | 0 | 0 | 5.0 s |")
