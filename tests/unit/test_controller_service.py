"""The controller in-process on virtual time: real gRPC to a fake merger and a fake worker, the in-memory event log, fakeredis."""

from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from moedge.v1 import worker_pb2
from services.controller.service import Controller
from services.controller.settings import ControllerSettings
from services.runtime.clock import SystemClock, VirtualClock
from services.runtime.codec import seconds
from services.runtime.eventlog import ACTIVATIONS, MERGE_EVENTS, OutboxFullError, Record
from services.runtime.eventlog_memory import MemoryBroker, MemoryEventLog
from services.runtime.events import EventWriter, kind_word, read_merge
from services.runtime.net import channel
from services.runtime.status import RpcFailure, budget_too_small, data_loss, failed_precondition
from services.runtime.store import EdgeRegistry, TriggerStore, open_redis
from tests.fakes.controller_worker import FakeControllerWorker
from tests.fakes.merger import FakeMerger
from tests.fakes.waiting import until
from tests.unit.merging_builders import make_profiles, per_task

PROFILES = per_task(make_profiles(3, num_layers=6, num_experts=16, tokens_per_task=40))
MIX = {"facts": 0.6, "pick": 0.4}
OTHER = {"pronoun": 1.0}
FAR_S = 1e9  # the controller's own loop ticks once; tests tick


async def reports_arrive():
    """The in-memory log hands records over within a few turns of the loop; fakeredis takes a few more."""
    for _ in range(20):
        await SystemClock().sleep(0.001)


class Fleet:
    """A merger, a worker and the shared stores; controllers come and go."""

    def __init__(self, clock, broker, redis, merger, worker):
        self.clock, self.broker, self.redis = clock, broker, redis
        self.merger, self.worker = merger, worker

    def settings(self, **overrides):
        return ControllerSettings(
            merger_address=self.merger.address, **({"tick_s": FAR_S, "interval_s": 20.0, "backoff_s": 5.0} | overrides)
        )

    @asynccontextmanager
    async def controller(self, *, log=None, **overrides):
        log = log or MemoryEventLog(self.clock, self.broker)
        async with Controller(self.settings(**overrides), log, self.redis, self.clock) as controller:
            await self.look(controller)
            yield controller

    async def look(self, controller, after_s=0.0):
        """Let reports arrive, move on, look at every edge, and wait for what that starts."""
        await reports_arrive()
        await self.clock.advance(after_s)
        await controller.tick()
        await controller.settled()

    async def events(self):
        log = MemoryEventLog(self.clock, self.broker)
        return [read_merge(record) async for record in log.read_all(MERGE_EVENTS)]

    async def kinds(self):
        return [kind_word(event) for event in await self.events()]


@pytest.fixture
async def fleet():
    clock, broker, redis = VirtualClock(), MemoryBroker(), open_redis(None)
    async with AsyncExitStack() as stack:
        # The generated bases answer UNIMPLEMENTED for what the fakes leave out.
        fake_merger = FakeMerger(PROFILES)  # type: ignore[abstract]
        merger = await stack.enter_async_context(fake_merger.serving())
        events = EventWriter(MemoryEventLog(clock, broker), "worker-a", clock)
        worker = FakeControllerWorker("edge-a", EdgeRegistry(redis, clock), events, PROFILES)  # type: ignore[abstract]
        await stack.enter_async_context(worker.serving(merger.version_for(MIX)))
        yield Fleet(clock, broker, redis, merger, worker)
    await redis.aclose()


async def test_an_edge_is_taken_over_with_what_its_manifest_says(fleet):
    async with fleet.controller() as controller:
        (status,) = controller.status()
        assert (status.edge_id, status.version, status.phase, status.mix) == ("edge-a", fleet.worker.entry.version, "watch", MIX)
        assert (status.interval_s, status.due_in_s) == (20.0, 20.0)


async def test_changed_traffic_is_built_for_rolled_out_and_told(fleet):
    first = fleet.worker.entry.version
    async with fleet.controller() as controller:
        fleet.worker.report(OTHER)
        await fleet.look(controller, after_s=20.0)
        assert fleet.worker.loads == [fleet.merger.version_for(OTHER)]
        (request,) = fleet.merger.requests
        assert (dict(request.mix), request.budget_bytes, request.base_model) == (OTHER, 1_000, "base-1")
        assert (request.options.method, request.options.allocation, request.options.grouping) == ("best", "whole-tasks", "router-logits")
        assert not request.raw_frequencies
        requested, built, swapped = await fleet.events()
        assert [kind_word(e) for e in (requested, built, swapped)] == ["requested", "built", "swapped"]
        assert (requested.version, swapped.version) == (first, fleet.worker.entry.version)
        assert requested.activation_shift > 0.2
        assert "reaches 0.2" in requested.reason
        assert dict(swapped.mix) == OTHER
        assert (swapped.swap.bytes_fetched, swapped.swap.ok) == (100, True)
        await fleet.look(controller)
        (status,) = controller.status()
        assert (status.updates, status.mix, status.phase, status.num_tasks) == (1, OTHER, "watch", 0)


async def test_unchanged_traffic_keeps_the_version_and_says_so(fleet):
    async with fleet.controller() as controller:
        fleet.worker.report(MIX)
        await fleet.look(controller, after_s=20.0)
        (event,) = await fleet.events()
        assert kind_word(event) == "kept"
        assert seconds(event.check_interval) == 40.0
        assert fleet.merger.requests == []
        assert controller.status()[0].action == "keep"


async def test_too_few_reports_decide_nothing(fleet):
    async with fleet.controller() as controller:
        await fleet.look(controller, after_s=20.0)
        assert await fleet.kinds() == []
        assert (controller.status()[0].action, controller.status()[0].interval_s) == ("skip", 20.0)


async def test_a_report_delivered_twice_counts_once(fleet):
    async with fleet.controller() as controller:
        fleet.worker.report(MIX, reports=1)
        log = MemoryEventLog(fleet.clock, fleet.broker)
        (record,) = [r async for r in log.read_all(ACTIVATIONS)]
        log.publish(record)
        await fleet.look(controller)
        assert controller.status()[0].num_tasks == 20


async def test_poison_reports_go_to_the_dead_letters_and_the_next_one_counts(fleet):
    log = MemoryEventLog(fleet.clock, fleet.broker)
    async with fleet.controller() as controller:
        log.publish(Record(ACTIVATIONS, "edge-a", b"\xff\xff\xff"))
        bent = EventWriter(log, "bent", fleet.clock)
        bent.activations("edge-a", fleet.worker.entry.version, PROFILES["facts"][:2].astype(int), num_tasks=20, window_s=1.0)
        bent.activations("", "", PROFILES["facts"].astype(int), num_tasks=20, window_s=1.0)
        fleet.worker.report(MIX, reports=1)
        await fleet.look(controller)
        letters = [r.headers["dlq-error"] async for r in log.read_all(f"{ACTIVATIONS}.dlq")]
        assert len(letters) == 3
        assert sum("shape (2, 16)" in letter for letter in letters) == 1
        assert controller.status()[0].num_tasks == 20


async def test_a_refused_build_leaves_the_old_model_backs_off_and_asks_again(fleet):
    fleet.merger.refuse = budget_too_small(5_000)
    async with fleet.controller() as controller:
        fleet.worker.report(OTHER)
        await fleet.look(controller, after_s=20.0)
        (status,) = controller.status()
        assert fleet.worker.loads == []
        assert (status.failures, status.due_in_s) == (1, 5.0)
        assert "build: OUT_OF_RANGE BUDGET_TOO_SMALL" in status.last_error
        assert await fleet.kinds() == ["requested", "failed"]
        await fleet.look(controller, after_s=4.0)
        assert len(fleet.merger.requests) == 1
        fleet.merger.refuse = None
        await fleet.look(controller, after_s=1.0)
        assert await fleet.kinds() == ["requested", "failed", "requested", "built", "swapped"]
        assert controller.status()[0].last_error == ""


@pytest.mark.parametrize("failure", [data_loss("blob 12ab is not what it says"), failed_precondition("PINNED", "the edge is pinned")])
async def test_a_refused_rollout_leaves_the_old_model_and_says_why(fleet, failure: RpcFailure):
    first = fleet.worker.entry.version
    fleet.worker.refuse = failure
    async with fleet.controller() as controller:
        fleet.worker.report(OTHER)
        await fleet.look(controller, after_s=20.0)
        event = (await fleet.events())[-1]
        assert (kind_word(event), event.version) == ("failed", first)
        assert event.reason == f"load: {failure.code.name} {failure.reason}: {failure.message}"
        assert controller.engine.deployed_version("edge-a") == first


async def test_a_swap_that_reports_failure_counts_as_failed(fleet):
    fleet.worker.swap_error = "check prompt answered 'no'"
    async with fleet.controller() as controller:
        fleet.worker.report(OTHER)
        await fleet.look(controller, after_s=20.0)
        assert "check prompt" in (await fleet.events())[-1].reason
        assert controller.status()[0].failures == 1


async def test_a_merger_that_is_gone_fails_the_update_within_the_deadline(fleet):
    async with fleet.controller(build_timeout_s=0.2) as controller:
        fleet.merger.gate.clear()
        fleet.worker.report(OTHER)
        await fleet.look(controller, after_s=20.0)
        assert "build: DEADLINE_EXCEEDED" in controller.status()[0].last_error


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [("pinned", True, "pinned"), ("state", 3, "draining"), ("state", 2, "updating"), ("state", 4, "unreachable")],
)
async def test_edges_that_may_not_change_are_skipped_with_the_reason_said_once_and_keep_their_counts(fleet, field, value, reason):
    setattr(fleet.worker.entry, field, value)
    await fleet.worker.register()
    async with fleet.controller() as controller:
        fleet.worker.report(OTHER)
        await fleet.look(controller, after_s=20.0)
        await fleet.look(controller, after_s=5.0)
        assert [e.reason for e in await fleet.events()] == [reason]
        assert (controller.status()[0].action, controller.status()[0].reason) == ("skip", reason)
        fleet.worker.entry.pinned, fleet.worker.entry.state = False, 1
        await fleet.worker.register()
        await fleet.look(controller, after_s=5.0)
        assert (await fleet.kinds())[-1] == "swapped"


async def test_a_restarted_controller_goes_on_where_the_old_one_stopped_without_the_merger(fleet):
    async with fleet.controller() as controller:
        fleet.worker.report(MIX)
        await fleet.look(controller, after_s=20.0)
        fleet.worker.report(OTHER, reports=3)
        await fleet.look(controller)
        before = controller.status()[0]
    calls = fleet.merger.num_manifest_calls
    async with fleet.controller() as controller:
        after = controller.status()[0]
        assert (after.interval_s, after.num_tasks, after.mix, after.version) == (40.0, 60, MIX, before.version)
        assert after.due_in_s == pytest.approx(before.due_in_s)
        assert fleet.merger.num_manifest_calls == calls


async def test_a_report_redelivered_after_a_restart_still_counts_once(fleet):
    async with fleet.controller() as controller:
        fleet.worker.report(MIX, reports=2)
        await fleet.look(controller)
    async with fleet.controller(consumer_group="another-reads-everything-again") as controller:
        await fleet.look(controller)
        assert controller.status()[0].num_tasks == 40


async def test_lost_or_broken_state_restarts_from_the_manifest(fleet):
    async with fleet.controller() as controller:
        fleet.worker.report(MIX)
        await fleet.look(controller, after_s=20.0)
    await TriggerStore(fleet.redis, fleet.clock).put("edge-a", b'{"format": 1, "engine": "nonsense"}')
    async with fleet.controller() as controller:
        assert (controller.status()[0].interval_s, controller.status()[0].num_tasks) == (20.0, 0)
        assert controller.status()[0].mix == MIX


async def test_a_controller_that_ends_in_the_middle_of_a_build_lets_the_next_one_finish_it(fleet):
    async with fleet.controller() as controller:
        fleet.merger.gate.clear()
        fleet.worker.report(OTHER)
        await reports_arrive()
        await fleet.clock.advance(20.0)
        await controller.tick()
        await until(lambda: bool(fleet.merger.requests), what="a build")
        assert controller.status()[0].phase == "build"
        await controller.tick()
        assert len(fleet.merger.requests) == 1
    fleet.merger.gate.set()
    async with fleet.controller():
        assert fleet.worker.loads == [fleet.merger.version_for(OTHER)]


async def test_a_version_changed_by_others_is_taken_over_and_its_window_starts_anew(fleet):
    async with fleet.controller() as controller:
        fleet.worker.report(MIX, reports=2)
        await fleet.look(controller)
        fleet.worker.entry.version = fleet.merger.version_for(OTHER)
        await fleet.worker.register()
        await fleet.look(controller)
        assert (controller.status()[0].mix, controller.status()[0].num_tasks) == (OTHER, 0)


async def test_a_registry_that_lags_behind_a_rollout_is_no_change_of_version(fleet):
    fleet.worker.registry_lags = True
    async with fleet.controller() as controller:
        fleet.worker.report(OTHER)
        await fleet.look(controller, after_s=20.0)
        await fleet.look(controller, after_s=0.5)
        assert controller.engine.deployed_version("edge-a") == fleet.merger.version_for(OTHER)
        await fleet.worker.register()
        await fleet.look(controller, after_s=0.5)
        assert controller.status()[0].mix == OTHER
        assert fleet.merger.num_manifest_calls == 1


async def test_a_version_without_manifest_is_asked_for_again_later(fleet):
    known = fleet.worker.entry.version
    fleet.worker.entry.version = "nobody-built-this"
    await fleet.worker.register()
    async with fleet.controller() as controller:
        (status,) = controller.status()
        assert status.phase == "unknown"
        assert "nobody-built-this" in status.last_error
        await fleet.look(controller, after_s=1.0)
        assert fleet.merger.num_manifest_calls == 1
        fleet.worker.entry.version = known
        await fleet.worker.register()
        await fleet.look(controller, after_s=5.0)
        assert (controller.status()[0].phase, controller.status()[0].last_error) == ("watch", "")


async def test_paper_mode_sends_raw_frequencies_and_compares_with_them_afterwards(fleet):
    async with fleet.controller(mode="paper") as controller:
        fleet.worker.report({"facts": 0.5, "pronoun": 0.5})
        await fleet.look(controller, after_s=20.0)
        (request,) = fleet.merger.requests
        assert len(request.raw_frequencies) == 6
        assert sum(request.raw_frequencies[0].values) == pytest.approx(1.0)
        fleet.worker.report({"facts": 0.5, "pronoun": 0.5})
        await fleet.look(controller, after_s=60.0)
        assert (await fleet.kinds())[-1] == "kept"


async def test_a_request_for_the_version_that_is_served_ends_without_a_rollout(fleet):
    async with fleet.controller(trigger="periodic", interval_s=10.0) as controller:
        fleet.worker.report({"facts": 1.0})
        await fleet.look(controller, after_s=10.0)
        fleet.worker.report({"facts": 1.0})
        await fleet.look(controller, after_s=10.0)
        assert await fleet.kinds() == ["requested", "built", "swapped", "requested", "kept"]
        assert len(fleet.worker.loads) == 1


async def test_the_never_trigger_updates_nothing(fleet):
    async with fleet.controller(trigger="never") as controller:
        fleet.worker.report(OTHER)
        await fleet.look(controller, after_s=20.0)
        assert fleet.merger.requests == []
        assert controller.status()[0].shift > 0.2


async def test_an_edge_unseen_for_long_is_forgotten_and_comes_back_from_its_saved_state(fleet):
    async with fleet.controller(forget_after_s=60.0) as controller:
        fleet.worker.report(MIX, reports=2)
        await fleet.look(controller)
        await EdgeRegistry(fleet.redis, fleet.clock).remove("edge-a")
        await fleet.look(controller, after_s=61.0)
        assert (controller.status(), controller.engine.edges) == ((), ())
        await fleet.worker.register()
        await fleet.look(controller)
        assert controller.status()[0].num_tasks == 40


class FullLog(MemoryEventLog):
    """An event log whose outbox takes nothing that must not be dropped."""

    def publish(self, record, *, droppable=False):
        if not droppable:
            raise OutboxFullError


async def test_a_full_outbox_costs_the_events_and_nothing_else(fleet):
    async with fleet.controller(log=FullLog(fleet.clock, fleet.broker)) as controller:
        fleet.worker.report(OTHER)
        await fleet.look(controller, after_s=20.0)
        assert fleet.worker.loads == [fleet.merger.version_for(OTHER)]
        assert await fleet.events() == []


async def test_the_controller_watches_by_itself_on_its_clock(fleet):
    async with fleet.controller(tick_s=0.5):
        fleet.worker.report(OTHER)
        for _ in range(100):
            await fleet.clock.advance(0.5)
            await SystemClock().sleep(0.002)
        await until(lambda: bool(fleet.worker.loads), what="a rollout")
        assert fleet.worker.loads == [fleet.merger.version_for(OTHER)]


async def test_health_and_reflection_answer_and_nothing_else_is_served(fleet):
    async with fleet.controller() as controller, channel(controller.address) as to_controller:
        stub = health_pb2_grpc.HealthStub(to_controller)
        response = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert response.status == health_pb2.HealthCheckResponse.SERVING
    async with channel(controller.address) as to_nobody:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_pb2_grpc.HealthStub(to_nobody).Check(health_pb2.HealthCheckRequest(), timeout=1)
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


async def explored(fleet, controller):
    """Every prospect is learnt, one look after the other."""
    for _ in range(12):
        await reports_arrive()
        await fleet.clock.advance(6.0)


async def test_portfolio_learns_what_an_edge_could_become_and_makes_it_what_its_fleet_lacks(fleet):
    fleet.worker.entry.quality.update(dict.fromkeys(PROFILES, 0.0) | MIX)
    fleet.worker.entry.max_batch = 4
    fleet.worker.entry.step_times.CopyFrom(worker_pb2.StepTimes(step_base_s=0.05, step_row_s=0.01, prefill_base_s=0.02))
    await fleet.worker.register()
    async with fleet.controller(trigger="portfolio", interval_s=100.0, tick_s=5.0) as controller:
        await explored(fleet, controller)
        pure, pairs = [{t: 1.0} for t in sorted(PROFILES)], 3
        asked = [dict(request.mix) for request in fleet.merger.requests]
        assert asked[:3] == pure
        assert len(asked) == 3 + pairs
        assert all(request.budget_bytes == 1_000 for request in fleet.merger.requests)
        fleet.worker.report(OTHER)
        await fleet.look(controller, after_s=100.0)
        assert fleet.worker.loads == [fleet.merger.version_for(OTHER)]
        (status,) = controller.status()
        assert "100% pronoun would save the fleet" in status.reason
        assert len(fleet.merger.requests) == 3 + pairs + 1  # the merger has the build already


async def test_a_merger_that_is_away_leaves_portfolio_without_prospects_and_the_edge_with_its_version(fleet):
    fleet.worker.entry.quality.update(dict.fromkeys(PROFILES, 0.0) | MIX)
    await fleet.worker.register()
    fleet.merger.refuse = RpcFailure(grpc.StatusCode.UNAVAILABLE, "AWAY", "the merger is away")
    async with fleet.controller(trigger="portfolio", interval_s=100.0, tick_s=5.0) as controller:
        await explored(fleet, controller)
        fleet.worker.report(OTHER)
        await fleet.look(controller, after_s=100.0)
        (status,) = controller.status()
        assert (status.action, fleet.worker.loads) == ("skip", [])
        assert "not known yet" in status.reason


async def test_other_triggers_ask_the_merger_for_nothing_beforehand(fleet):
    fleet.worker.entry.quality.update(MIX)
    await fleet.worker.register()
    async with fleet.controller() as controller:
        await explored(fleet, controller)
        assert fleet.merger.requests == []
