"""What is promised when containers die, freeze, restart and multiply under load; each fault has a row in the table printed at the end.

`--faults full` runs them at the counts and durations that are promised, and those that a build has no time for.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest

from moedge.v1 import inference_pb2, inference_pb2_grpc, worker_pb2
from services.runtime.status import failure_of
from tests.e2e.asking import FELT_S, NEAR_SMALL, entry_of
from tests.harness.compose import SERVICES, WORKERS
from tests.harness.faults import Scaled, cut_off, flushed, killed, paused, slowed, stopped
from tests.harness.history import OK, Fault
from tests.harness.table import Latency
from tests.harness.versions import check_not_lower

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(7200)]

BROKER_BACK_S = 3.0  # from a broker's listening to the last call that it refused
ALL_BACK_S = 5.0  # from the first edge's readiness to every call being answered
REFUSED_WITHIN_S = 0.1
EVENTS_WITHIN_S = 30.0
SHARE_WITHIN_S = 15.0
# A task takes 10 to 20 ms of processor: a tenth of it only doubles what its user waits, no more than the way to another edge costs.
SLOW_RATIO = 40.0
NEAR_LARGE: dict[str, Any] = {"regions": ("east",), "alpha": 0.001}  # users whom no better answer keeps at a slow edge
OURS = ("merger", "controller", "broker", *WORKERS)  # that end with 0 when they are told to
ENDED_BY_SIGTERM = 143  # what a Java process says of it


async def test_1_a_killed_worker_is_not_felt(scenarios, stack, counts):
    rng = np.random.default_rng(1)
    async with scenarios.loaded("1 worker killed", f"0 refused, moved tasks done in {FELT_S:g} s") as run:
        await run.wait(2.0)
        for number in range(counts.worker_kills):
            service = WORKERS[number % len(WORKERS)]
            await run.wait(rng.uniform(0.5, 2.0))
            async with run.during(killed(stack, service), settles_s=FELT_S):
                await run.wait(0.5)
            await stack.whole()
    await run.judge(answered=1.0)
    assert run.row.refused == 0
    assert run.row.recovery_s <= FELT_S
    run.row.met = True


async def test_3_without_any_edge_calls_are_refused_at_once_and_with_one_they_are_answered(scenarios, stack, counts):
    must = f"refused in {1e3 * REFUSED_WITHIN_S:g} ms (p99), answered {ALL_BACK_S:g} s after an edge is ready"
    async with scenarios.loaded("3 all edges dead", must, deadline_s=5.0, retrying=False) as run:
        await run.wait(3.0)
        began_at_s = run.now_s()
        async with killed(stack, *WORKERS):
            await run.wait(1.0)
            dead_at_s = run.now_s()
            assert 0.1 <= await retry_after_s(stack) <= 5.0
            await run.wait(counts.all_dead_s)
            healed_at_s = run.now_s()
        await stack.until(lambda: any_ready(stack), "an edge is ready", 60.0)
        ready_at_s = run.now_s()
        run.faults.append(Fault(began_at_s, ready_at_s + ALL_BACK_S, name="kill every worker"))
        await stack.whole()
        await run.wait(ALL_BACK_S)
    refusals = [call.latency_s for call in run.sent_between(dead_at_s, healed_at_s)]
    run.row.recovery_s = max([call.end_at_s - ready_at_s for call in run.calls.failed if call.end_at_s > ready_at_s], default=0.0)
    await run.judge(answered=0.0)
    assert {call.status for call in run.sent_between(dead_at_s, healed_at_s)} == {"UNAVAILABLE"}
    assert np.percentile(refusals, 99) <= REFUSED_WITHIN_S
    run.row.met = True


async def any_ready(stack):
    return any(edge.state == worker_pb2.EDGE_STATE_READY for edge in (await stack.edges()).values())


async def retry_after_s(stack):
    """What one refused call is told about when to come back."""
    async with stack.channel() as fleet:
        stub = inference_pb2_grpc.InferenceServiceStub(fleet)
        call = stub.Generate(inference_pb2.GenerateRequest(prompt="which outcome", task_type="alternative"), timeout=2.0)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
    failure = failure_of(refused.value)
    assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_EDGE")
    return failure.retry_after_s


async def test_4_a_killed_broker_answers_again_as_soon_as_it_is_back(scenarios, stack, counts):
    async with scenarios.loaded("4 broker killed", f"answers {BROKER_BACK_S:g} s after it listens; no task runs more than twice") as run:
        await run.wait(2.0)
        slowest_s = 0.0
        for _ in range(counts.broker_kills):
            async with run.during(killed(stack, "broker"), settles_s=10.0, kills_broker=True):
                await run.wait(1.0)
            listens_at_s = await listening(stack, stack.container("broker"))
            await stack.whole()
            await run.wait(3.0)
            refused = [met.ended_at_s for call in run.calls.ended for met in call.refusals]
            slowest_s = max([slowest_s, *(at_s - listens_at_s for at_s in refused)])
        run.row.recovery_s = slowest_s
    events = await run.judge(whole_brokers=False)
    assert slowest_s <= BROKER_BACK_S
    started = [event for event in events if event.event_id.split(":")[1] == "started"]
    assert all(event.attempt <= 2 for event in started)
    run.row.met = True


async def listening(stack, container):
    """When its port first took a connection."""

    async def connects():
        host, _, port = stack.address(container).rpartition(":")
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), 1.0)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True

    await stack.until(connects, "the broker listens", 30.0)
    return stack.clock.now_s()


async def test_5_a_rolling_restart_fails_no_call(scenarios, stack, counts):
    async with scenarios.loaded("5 rolling restart", "every call answered, nothing accepted is lost, every service ends with 0") as run:
        for _ in range(counts.rolls):
            for service in SERVICES:
                await run.wait(1.0)
                container = stack.container(service)
                async with run.during(stopped(stack, service), settles_s=10.0, drains=service in OURS):
                    container.reload()
                    assert container.attrs["State"]["ExitCode"] == (ENDED_BY_SIGTERM if service == "kafka" else 0), service
                await stack.whole()
    await run.judge(answered=1.0)
    run.row.met = True


async def test_6_inference_does_not_feel_that_kafka_is_away(scenarios, stack, counts, quiet):
    async with scenarios.loaded("6 Kafka away", f"0 refused, every event there {EVENTS_WITHIN_S:g} s after") as run:
        await run.wait(2.0)
        began_at_s = run.now_s()
        async with paused(stack, "kafka"):
            await run.wait(counts.kafka_pause_s)
        await run.wait(5.0)
        async with killed(stack, "kafka"):
            await run.wait(2.0)
        await stack.whole()
        away = run.sent_between(began_at_s, run.now_s())
    healed_at_s = run.now_s()
    await run.judge(answered=1.0)
    run.row.recovery_s = run.now_s() - healed_at_s
    assert run.row.refused == 0
    assert check_not_lower(quiet, away) == []
    assert run.row.recovery_s <= EVENTS_WITHIN_S
    run.row.met = True


async def test_9_inference_does_not_feel_that_redis_forgets_or_is_away(scenarios, stack, counts, quiet):
    async with scenarios.loaded("9 Redis flushed and away", "0 refused") as run:
        await run.wait(2.0)
        began_at_s = run.now_s()
        await flushed(stack)
        await run.wait(3.0)
        async with paused(stack, "redis"):
            await run.wait(counts.redis_pause_s)
        await run.wait(5.0)
        away = run.sent_between(began_at_s, run.now_s())
        edges = await stack.edges()
    await run.judge(answered=1.0)
    assert run.row.refused == 0
    assert check_not_lower(quiet, away) == []
    assert all(edge.state == worker_pb2.EDGE_STATE_READY for edge in edges.values())
    run.row.met = True


async def test_30_workers_that_come_and_go_are_not_felt(scenarios, stack):
    must = f"0 refused, each new edge has tasks and all have half of a fair share {SHARE_WITHIN_S:g} s after"
    async with scenarios.loaded("30 scaled to 5 and to 2", must, rate_per_s=6.0, deadline_s=30.0, **NEAR_SMALL) as run:
        known = set(await stack.edges())
        scaled = Scaled(stack, "worker-small", 5)
        try:
            await scaled.inject()
            new = set(await stack.whole()) - known
            assert len(new) == 4
            await run.wait(SHARE_WITHIN_S)
            settled_at_s = run.now_s()
            await run.wait(SHARE_WITHIN_S)
            shares = shares_of(run.sent_between(settled_at_s, run.now_s()))
            leaves_at_s = run.now_s()
            await scaled.to(2)
            run.faults.append(Fault(leaves_at_s, run.now_s() + FELT_S, drains=True, name="scale down"))
            await stack.whole()
            await run.wait(5.0)
        finally:
            await scaled.heal()
        await stack.whole()
    await run.judge(answered=1.0)
    assert run.row.refused == 0
    small = [share for edge_id, share in shares.items() if edge_id.startswith("small")]
    assert new <= shares.keys(), shares
    assert sum(shares[edge_id] for edge_id in new) >= 0.5 * sum(small) * len(new) / (len(new) + 1), shares
    run.row.met = True


def shares_of(calls):
    """Of the answered calls, by edge."""
    answered = [call.edge_id for call in calls if call.status == OK]
    return {edge_id: answered.count(edge_id) / len(answered) for edge_id in sorted(set(answered))}


async def served(run, edges, since_s):
    return edges <= {call.edge_id for call in run.calls.ended if call.status == OK and call.sent_at_s >= since_s}


async def test_30_the_stack_comes_up_cold_after_it_went_down_under_load(scenarios, stack, counts):
    """Volumes stay, as a restart of the machine leaves them. Users wait for as long as it takes."""
    must = "ready in 60 s, every call answered in 120 s"
    async with scenarios.loaded("30 down and up", must, rate_per_s=2.0, deadline_s=120.0) as run:
        slowest_s = 0.0
        for _ in range(counts.cold_starts):
            await run.wait(3.0)
            began_at_s = run.now_s()
            try:
                await asyncio.to_thread(stack.compose, "down")
            finally:
                begins_at_s = run.now_s()
                await asyncio.to_thread(stack.compose, "up", "-d", "--no-build", "--wait")
            slowest_s = max(slowest_s, run.now_s() - begins_at_s)
            await stack.whole()
            # Going down drains; an edge that is met before it listens loses its task, and there may be no other edge yet.
            run.faults.append(Fault(began_at_s, begins_at_s, drains=True, name="down"))
            run.faults.append(Fault(begins_at_s, run.now_s() + 10.0, name="up"))
            await run.wait(2.0)
        run.row.recovery_s = slowest_s
    await run.judge(answered=1.0)
    assert slowest_s <= 60.0
    run.row.met = True


@pytest.mark.parametrize("directions", [(), ("INPUT",), ("OUTPUT",)], ids=["both-ways", "inwards", "outwards"])
async def test_12_an_edge_that_is_cut_off_is_left_out_and_comes_back(scenarios, stack, counts, directions):
    if not counts.cuts:
        pytest.skip("only with --faults full (make faults)")
    name = f"12 edge cut off {' '.join(directions).lower() or 'both ways'}"
    async with scenarios.loaded(name, "0 refused, its calls elsewhere in 4 s, its share back 15 s after") as run:
        worker = stack.container("worker-large")
        edge_id = (await entry_of(stack, worker)).edge_id
        for _ in range(max(counts.cuts // 3, 1)):
            await run.wait(3.0)
            async with run.during(cut_off(stack, worker, *directions), settles_s=15.0):
                await run.wait(counts.cut_s)
            healed_at_s = run.now_s()
            await stack.until(lambda at_s=healed_at_s: served(run, {edge_id}, at_s), f"{edge_id} answers again", 20.0)
            await stack.whole()
    moved = [call for call in run.calls.ended if call.attempts > 1]
    run.row.recovery_s = max((call.latency_s for call in moved), default=0.0)
    await run.judge(answered=1.0)
    assert run.row.refused == 0
    assert run.row.recovery_s <= 4.0 + FELT_S
    run.row.met = True


@pytest.mark.parametrize("kind", ["slow", "frozen"])
async def test_13_a_slow_or_frozen_edge_gets_little(scenarios, stack, counts, kind):
    if not counts.cuts:
        pytest.skip("only with --faults full (make faults)")
    must = "0 refused, its share at most 15 % after 5 s"
    async with scenarios.loaded(f"13 {kind} edge", must, rate_per_s=4.0, **NEAR_LARGE) as run:
        worker = stack.container("worker-large")
        edge_id = (await entry_of(stack, worker)).edge_id
        await run.wait(3.0)
        fault = slowed(stack, worker, SLOW_RATIO) if kind == "slow" else paused(stack, "worker-large")
        async with run.during(fault, settles_s=10.0):
            await run.wait(5.0)
            settled_at_s = run.now_s()
            await run.wait(counts.slow_s if kind == "slow" else counts.frozen_s)
            ends_at_s = run.now_s()
        await stack.until(lambda: served(run, {edge_id}, ends_at_s), f"{edge_id} answers again", 30.0)
    there = [call for call in run.sent_between(settled_at_s, ends_at_s) if call.status == OK]
    share = sum(call.edge_id == edge_id for call in there) / max(len(there), 1)
    await run.judge(answered=1.0)
    assert run.row.refused == 0
    assert share <= 0.15
    run.row.met = True


async def test_25_edges_serve_on_while_controller_and_merger_are_away(scenarios, stack, counts, quiet):
    if not counts.absent_s:
        pytest.skip("only with --faults full (make faults)")
    async with scenarios.loaded("25 controller and merger away", "0 refused, one update an edge within 60 s of their return") as run:
        async with run.during(killed(stack, "controller", "merger"), settles_s=10.0):
            await run.wait(counts.absent_s)
        back_at_s = run.now_s()
        before = {name: edge.updates for name, edge in (await stack.edges()).items()}
        await stack.whole()
        await run.wait(60.0 - (run.now_s() - back_at_s))
        after = {name: edge.updates for name, edge in (await stack.edges()).items()}
    await run.judge(answered=1.0)
    assert run.row.refused == 0
    assert check_not_lower(quiet, run.calls.ended) == []
    assert all(after[name] - before[name] <= 1 for name in before)
    assert Latency.of(run.calls.ended).p50_s > 0.0
    run.row.met = True
