"""A stack of processes loses one of them while load runs: no task is lost, and the ledger on Kafka says of each what its user was told."""

from __future__ import annotations

import asyncio
import uuid

import numpy as np
import pytest

from moedge.v1 import worker_pb2
from services.core.workload.arrivals import poisson
from services.runtime.clock import SystemClock
from services.runtime.net import channel
from services.tasks.sources import open_tasks
from tests.connected.local_stack import EDGES, started_stack
from tests.fakes.processes import started_redis
from tests.harness.checker import check, gaps, terminal, unfinished
from tests.harness.history import OK, Fault
from tests.harness.recorder import Calls

pytestmark = [pytest.mark.connected, pytest.mark.timeout(240)]

RATE_PER_S = 8.0
DEADLINE_S = 20.0
WORKER_FAULT_S = 5.0  # from a worker's death to the last call that may feel it
BROKER_FAULT_S = 15.0  # from a broker's death to the new one knowing its edges
BURST_TASKS = 15
FEWEST_QUEUED = 2  # at the process that is killed
LEDGER_WITHIN_S = 30.0
LATE_EVENTS_S = 3.0  # what would come twice has come by then


@pytest.fixture(scope="module")
def stack(tmp_path_factory, kafka_bootstrap):
    directory = tmp_path_factory.mktemp("stack")
    with started_redis(directory) as redis_server, started_stack(directory, kafka_bootstrap, redis_server.url) as stack:
        yield stack
        print(stack.tails())


@pytest.fixture
async def calls(stack):
    async with channel(stack.address("broker")) as broker:
        yield Calls(broker, f"call-{uuid.uuid4().hex[:8]}", DEADLINE_S)


def make_load(duration_s, bursts_at_s, seed=0):
    """Open-loop arrivals with bursts that fill the queues, and a few questions that come again and again."""
    rng = np.random.default_rng(seed)
    at_s = sorted([*poisson(RATE_PER_S, duration_s, rng), *(bursts_at_s * BURST_TASKS)])
    items = open_tasks("toy", "heldout", items_per_type=4).items
    return [items[number] for number in rng.integers(len(items), size=len(at_s))], at_s


async def busy(stack, edge, calls):
    """Until the edge has a task that streams, and some that wait; the calls that stream."""
    clock = SystemClock()
    async with asyncio.timeout(30.0), stack.worker(edge) as worker:
        while True:
            status = await worker.GetStatus(worker_pb2.GetStatusRequest(), timeout=2.0)
            streaming = {call_id for call_id, told in calls.in_flight.items() if told.edge_id == edge and told.num_tokens}
            if status.queued_tasks >= FEWEST_QUEUED and streaming:
                return streaming
            await clock.sleep(0.01)


async def settled_ledger(stack, calls, late_s=LATE_EVENTS_S):
    """All events, once every task has an end (or time is up: the check says which have none)."""
    clock = SystemClock()
    give_up_at_s = clock.now_s() + LEDGER_WITHIN_S
    while unfinished(calls.ended, await stack.ledger()) and clock.now_s() < give_up_at_s:
        await clock.sleep(0.5)
    await clock.sleep(late_s)
    return await stack.ledger()


async def retried(stack, calls, items_by_id):
    """Failed calls sent once more, as their users would."""
    again = Calls(calls.channel, f"{calls.name}-again", DEADLINE_S)
    failed = [items_by_id[call.question] for call in calls.failed]
    await again.send(failed, [0.0] * len(failed))
    assert check(again.sent, again.ended, await settled_ledger(stack, again, 0.0)) == []
    assert not again.failed


def print_figures(calls, fault, streaming):
    """For `pytest -rP`: what the fault came to."""
    moved = [call for call in calls.ended if call.status == OK and call.attempts > 1]
    longest_s = max((call.end_at_s - fault.began_at_s for call in moved), default=0.0)
    failed = sorted((call.status, round(call.end_at_s - fault.began_at_s, 2)) for call in calls.failed)
    midway = len({call.call_id for call in moved} & streaming)
    print(f"{len(calls.sent)} calls, {len(moved)} moved ({midway} midway), the last done after {longest_s:.2f} s; failed: {failed}")


def producers(events, calls):
    """Who wrote the beginnings of these calls' tasks: their broker."""
    mine = set(calls.sent)
    return {event.producer_id for event in events if event.user_id in mine and event.event_id.endswith(":dispatched:1")}


@pytest.mark.parametrize(
    ("victim", "merger_lives"),
    [pytest.param("west", True, id="another-edge-has-its-version"), pytest.param("east", False, id="no-edge-has-its-version")],
)
async def test_a_killed_worker_loses_no_task_and_serves_again(stack, calls, victim, merger_lives):
    versions = await stack.whole()
    items, at_s = make_load(duration_s=9.0, bursts_at_s=[2.0, 4.0])
    async with asyncio.TaskGroup() as group:
        load = group.create_task(calls.send(items, at_s))
        streaming = await busy(stack, victim, calls)
        stack.kill(victim)
        fault = Fault(calls.clock.now_s(), calls.clock.now_s() + WORKER_FAULT_S)
        if not merger_lives:
            stack.kill("merger")
        stack.start(victim)
        after = await stack.ready((victim,))
        back_at_s = calls.clock.now_s()
        await load
    await calls.send(items[:BURST_TASKS], [0.0] * BURST_TASKS)  # although the edge may have come back after the load
    events = await settled_ledger(stack, calls)
    print_figures(calls, fault, streaming)
    assert check(calls.sent, calls.ended, events, [fault]) == []
    assert gaps(events, producers(events, calls)) == []
    assert len(calls.sent) == len(items) + BURST_TASKS
    assert len(calls.failed) <= 0.01 * len(calls.sent)
    assert [call for call in calls.ended if call.status == OK and call.attempts > 1]  # the kill was felt, and made good
    assert after[victim] == versions[victim]
    assert [call for call in calls.ended if call.edge_id == victim and call.sent_at_s > back_at_s]
    await retried(stack, calls, {item.item_id: item for item in items})


async def test_the_tasks_of_a_killed_broker_are_closed_by_the_workers_that_had_them(stack, calls):
    await stack.whole()
    items, at_s = make_load(duration_s=6.0, bursts_at_s=[1.0, 3.0], seed=1)
    async with asyncio.TaskGroup() as group:
        load = group.create_task(calls.send(items, at_s))
        streaming = await busy(stack, "centre", calls)
        stack.kill("broker")
        fault = Fault(calls.clock.now_s(), calls.clock.now_s() + BROKER_FAULT_S, kills_broker=True)
        stack.start("broker")
        await stack.ready(EDGES)
        await load
    events = await settled_ledger(stack, calls)
    print_figures(calls, fault, streaming)
    assert check(calls.sent, calls.ended, events, [fault]) == []
    orphans = {call.call_id for call in calls.failed if fault.orphans(call)}
    assert orphans & {event.user_id for event in terminal(events) if event.producer_id.startswith("worker:")}
    await retried(stack, calls, {item.item_id: item for item in items})
