"""What edges could become, as the controller learns it for triggers that look at the whole fleet."""

import grpc
import pytest

from moedge.v1 import worker_pb2
from services.core.offload.values import Link
from services.runtime.codec import link_to_proto
from services.runtime.status import RpcFailure
from tests.unit.controller_harness import MIX, OTHER, PROFILES, reports_arrive, running_fleet


@pytest.fixture
async def fleet():
    async with running_fleet() as started:
        yield started


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


@pytest.mark.parametrize(("region", "least_ms", "most_ms"), [("", 0, 1500), ("west", 4000, 5500)])
async def test_portfolio_counts_the_way_from_the_regions_that_reports_tell_of(fleet, region, least_ms, most_ms):
    fleet.worker.entry.quality.update(dict.fromkeys(PROFILES, 0.0) | MIX)
    fleet.worker.entry.max_batch = 4
    fleet.worker.entry.step_times.CopyFrom(worker_pb2.StepTimes(step_base_s=0.05, step_row_s=0.01, prefill_base_s=0.02))
    fleet.worker.entry.links["west"].CopyFrom(link_to_proto(Link(2.0, 0.0, 0.0)))
    await fleet.worker.register()
    async with fleet.controller(trigger="portfolio", interval_s=100.0, tick_s=5.0) as controller:
        await explored(fleet, controller)
        fleet.worker.report(OTHER, region=region)
        await fleet.look(controller, after_s=100.0)
        (status,) = controller.status()
        assert least_ms <= int(status.reason.split(" ms of ")[1].split()[0]) <= most_ms


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
        assert 2 <= len(fleet.merger.requests) <= 6  # in 72 s: after 5 s, 10 s, 20 s, ...


async def test_other_triggers_ask_the_merger_for_nothing_beforehand(fleet):
    fleet.worker.entry.quality.update(MIX)
    await fleet.worker.register()
    async with fleet.controller() as controller:
        await explored(fleet, controller)
        assert fleet.merger.requests == []
