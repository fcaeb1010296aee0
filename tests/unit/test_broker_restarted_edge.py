"""An edge worker that is started again at its old address: the broker reaches it as soon as the registry has it."""

from __future__ import annotations

from moedge.v1 import worker_pb2
from services.core.offload.values import EdgeState
from services.runtime.clock import SystemClock
from services.runtime.net import bind
from tests.fakes.waiting import until
from tests.fakes.worker import FakeWorker
from tests.unit.broker_harness import running

BACKED_OFF_S = 2.0  # by then a channel to a dead edge tries again less than once a second


class RestartedWorker(FakeWorker):
    """Another process at the address of one that is gone."""

    async def start_at(self, address: str) -> None:
        self.entry.address = bind(self._server, "127.0.0.1", int(address.rpartition(":")[2]))
        await self._server.start()
        await self.announce()


async def test_the_first_tasks_for_a_restarted_edge_do_not_meet_the_back_off_of_its_dead_process():
    async with running(heartbeat_s=60.0, quality_scale=100.0) as house:
        first = await house.worker("first", quality={"facts": 0.9})
        await house.worker("second", quality={"facts": 0.1})
        await first.die()
        moved = await house.ask("q", task_type="facts")
        assert (moved.summary.edge_id, moved.summary.attempts) == ("second", 2)
        await SystemClock().sleep(BACKED_OFF_S)
        again = RestartedWorker("first", house.redis, quality={"facts": 0.9})
        await again.start_at(first.entry.address)
        await house.known("first")
        got = await house.ask("q", task_type="facts")
        assert (got.summary.edge_id, got.summary.attempts) == ("first", 1)
        await again._server.stop(None)


async def test_another_edge_that_got_a_dead_ones_address_is_not_taken_for_it():
    async with running(heartbeat_s=0.05, quality_scale=100.0) as house:
        first = await house.worker("first")
        await first.die()
        other = RestartedWorker("other", house.redis, version="v2")
        await other.start_at(first.entry.address)
        await house.known("other")
        await house.known("first", state=EdgeState.UNREACHABLE)
        first.entry.sequence += 1
        await first.announce()
        found = {link.edge_id: link.entry.version for link in house.broker._parts.edges.links}
        assert found == {"first": "v1", "other": "v2"}
        assert (await house.ask("q")).summary.edge_id == "other"
        await other._server.stop(None)


async def test_what_the_registry_said_before_it_froze_does_not_bring_an_earlier_process_back():
    async with running(heartbeat_s=0.05) as house:
        first = await house.worker("first")
        before = worker_pb2.EdgeEntry()
        before.CopyFrom(first.entry)
        await first.die()
        await house.known("first", state=EdgeState.UNREACHABLE)
        again = RestartedWorker("first", house.redis, version="v2")
        await again.start_at(first.entry.address)
        await house.known("first")
        seen = set()
        for _ in range(10):
            await again._registry.put(before)
            await SystemClock().sleep(0.03)
            seen |= {(edge.version, edge.state) for edge in house.snapshots}
        assert seen == {("v2", EdgeState.READY)}
        await again._server.stop(None)


async def test_an_entry_of_the_dead_process_that_is_still_in_the_registry_brings_nothing_back():
    async with running(heartbeat_s=60.0, quality_scale=100.0) as house:
        first = await house.worker("first", quality={"facts": 0.9})
        await house.worker("second", quality={"facts": 0.1})
        left_behind = worker_pb2.EdgeEntry()
        left_behind.CopyFrom(first.entry)
        await first.die()
        await house.ask("q", task_type="facts")
        left_behind.sequence += 1
        await first._registry.put(left_behind)
        await until(lambda: left_behind.sequence in {link.entry.sequence for link in house.broker._parts.edges.links})
        await house.known("first", state=EdgeState.UNREACHABLE)
