"""The benchmark of the broker on a small load, with a broker inside this process: what it counts has to be what was there."""

from __future__ import annotations

import os

import numpy as np
import pytest
from typer.testing import CliRunner

from loadgen.bench.bare_hop import bare_hop
from loadgen.bench.broker import BrokerFigures, BrokerOptions, Side, SideFigures, added, alternate, of_side
from loadgen.bench.broker_load import Calls, NoAnswerError, Way, latencies
from loadgen.bench.broker_places import PlaceError, check_redis
from loadgen.bench.decision import decision_time
from loadgen.bench.pinned import cores, kept_to
from loadgen.bench.stub_edges import Pace, stub_edges
from loadgen.cli.bench.broker import as_json
from loadgen.cli.main import app
from services.runtime.net import channel
from services.runtime.store import EdgeRegistry, open_redis
from tests.fakes.processes import free_port
from tests.unit.broker_harness import running

PACE = Pace(num_tokens=3, token_s=0.001)
SMALL = BrokerOptions(tasks_per_s=60.0, duration_s=0.6, rounds=2, num_edges=2, pace=PACE, scales=(10,), num_decisions=20)


async def test_the_three_ways_answer_the_same_load_and_every_task_through_the_broker_is_in_its_ledger(clock):
    async with (
        running() as house,
        stub_edges(SMALL.num_edges, PACE, house.redis, clock) as edges,
        bare_hop(edges) as hop,
        channel(edges[0]) as first,
        channel(edges[1]) as second,
        channel(hop) as to_hop,
        channel(house.broker.address) as to_broker,
    ):
        await house.known("bench-0000", "bench-0001")
        direct = Side(Way([first, second], PACE.num_tokens, clock, "bench"), lambda: 0.0)
        bare = Side(Way([to_hop], PACE.num_tokens, clock, "bench"), lambda: 0.0)
        broker = Side(Way([to_broker], PACE.num_tokens, clock), lambda: 0.0)
        told: list[str] = []
        await alternate({"direct": direct, "bare proxy": bare, "broker": broker}, SMALL, clock, told.append)
        await house.quiet()
        lives = await house.lives()
    figures = of_side(direct), of_side(bare), of_side(broker)
    assert {each.num_failed for each in figures} == {0}
    assert len({each.num_sent for each in figures}) == 1, "each round's arrivals are the same for all"
    assert all(len(each.round_p50_s) == SMALL.rounds for each in figures)
    assert all(kinds == ["dispatched", "completed"] for kinds in lives.values())
    assert len(lives) > figures[2].num_sent, "and those that warmed it up"
    assert [line.split(": ")[1].split(",")[0] for line in told if "round 2" in line] == ["bare proxy", "broker", "direct"]
    found = as_json(BrokerFigures(SMALL, *figures, {10: decision_time(10, num_decisions=20, seed=1)}, 2 * len(lives), 1, False))
    assert {"tasks_per_s", "added_p50_s", "added_p99_s", "hop_added_p50_s", "decision_s", "broker_cpu_s_per_task"} <= found.keys()
    assert found["added_p50_s"] == pytest.approx(sum(figures[2].round_p50_s) / 2 - sum(figures[0].round_p50_s) / 2)


async def test_a_call_that_ends_badly_or_short_is_counted_and_not_timed(clock):
    redis = open_redis(None)
    async with stub_edges(1, PACE, redis, clock) as (edge,), channel(edge) as there, channel(f"127.0.0.1:{free_port()}") as nowhere:
        short = await Way([there], PACE.num_tokens + 1, clock).block(_at_once())
        lost = await Way([nowhere], PACE.num_tokens, clock).block(_at_once())
    await redis.aclose()
    assert short.failures == {"INCOMPLETE": 1}
    assert lost.failures == {"UNAVAILABLE": 1}
    short += lost
    assert short.num_sent == 2
    with pytest.raises(NoAnswerError, match="no call of 2 was answered"):
        latencies(short)


def test_latencies_are_quantiles_of_all_calls():
    calls = Calls(late_s=[0.0] * 99 + [0.02], first_token_s=[0.01] * 100, whole_s=[0.1] * 100)
    found = latencies(calls)
    assert (found.p50_s, found.p99_s, found.whole_p50_s, found.punctual) == (0.01, 0.01, 0.1, True)
    calls += Calls(late_s=[0.02], first_token_s=[0.01], whole_s=[0.1])
    assert not latencies(calls).punctual, "more than one in a hundred was sent late"


def test_what_is_added_is_the_median_of_rounds():
    def side(*p50_s: float) -> SideFigures:
        return SideFigures(latencies(Calls([0.0], [0.1], [0.1])), 1, 0, 0.1, 1.0, p50_s, p50_s)

    found = added(side(0.11, 0.12, 0.95), side(0.10, 0.10, 0.10))
    assert found.p50_s == found.p99_s == pytest.approx(0.02)


async def test_a_redis_that_a_stack_lives_in_is_refused(clock):
    redis = open_redis(None)
    await check_redis(redis, "redis://here")
    async with stub_edges(1, PACE, redis, clock):
        with pytest.raises(PlaceError, match=r"bench-0000.*redis://here/1"):
            await check_redis(redis, "redis://here")
    assert await EdgeRegistry(redis).all() == {}, "a benchmark's edges leave nothing behind"
    await check_redis(redis, "redis://here")
    await redis.aclose()


def test_without_redis_one_line_says_what_to_do():
    ran = CliRunner().invoke(app, ["bench", "broker", "--redis", f"redis://127.0.0.1:{free_port()}", "--kafka", "127.0.0.1:1"])
    assert ran.exit_code == 3
    assert "give --redis URL" in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_decisions_are_timed_at_any_number_of_edges():
    for num_edges in (1, 10):
        found = decision_time(num_edges, num_decisions=20, seed=1)
        assert 0.0 < found.median_s <= found.p99_s


def test_a_process_is_kept_to_its_cores_and_given_back():
    places = cores()
    before = os.sched_getaffinity(0)
    with kept_to(places.measured):
        assert os.sched_getaffinity(0) == places.measured
    assert os.sched_getaffinity(0) == before


def _at_once():
    return np.array([0.0])
