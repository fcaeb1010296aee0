"""The controller in-process on virtual time: real gRPC to a fake merger and a fake worker, the in-memory event log, fakeredis."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.clock import SystemClock
from services.runtime.codec import seconds
from services.runtime.eventlog import ACTIVATIONS, OutboxFullError, Record
from services.runtime.eventlog_memory import MemoryEventLog
from services.runtime.events import EventWriter, kind_word
from services.runtime.net import channel
from services.runtime.status import RpcFailure, budget_too_small, data_loss, failed_precondition
from services.runtime.store import EdgeRegistry, TriggerStore
from tests.fakes.waiting import until
from tests.unit.controller_harness import MIX, OTHER, PROFILES, reports_arrive, running_fleet


@pytest.fixture
async def fleet():
    async with running_fleet() as started:
        yield started


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
