"""The demonstration's parts: its load, the stack's own process, activations before and after an update."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loadgen.activations import ActivationTotals, heat_maps, mixed
from loadgen.child import ChildError, ChildStack
from loadgen.demo_plan import demo_load, led_by, regional_mix, regions_of
from loadgen.options import ReplayOptions
from loadgen.replay import replay
from moedge.v1 import events_pb2
from services.core.workload.load import PlannedTask
from services.tasks.values import TaskItem, TaskSet
from tests.fakes.child_stacks import answering, broken, vanishing
from tests.fakes.runs import TYPES, make_run, make_update

ITEMS = TaskSet(
    "five", tuple(TaskItem(t, f"{t}-{n}", f"{t} prompt {n}", ("yes it is",)) for t in TYPES for n in range(40)), dict.fromkeys(TYPES, "f1")
)


def test_every_region_is_led_by_one_task_type_and_the_leaders_change_twice():
    mix = regional_mix(TYPES, ("west", "centre", "east"), 80.0)
    assert mix.changes() == (16.0, 48.0)
    for at_s in (0.0, 16.0, 48.0):
        leaders = []
        for region in ("west", "centre", "east"):
            shares = mix.of(region).at(at_s)
            assert sum(shares.values()) == pytest.approx(1.0)
            assert min(shares.values()) == pytest.approx(0.05)
            assert all(round(20 * share) == pytest.approx(20 * share) for share in shares.values())
            leaders += [t for t, share in shares.items() if share > 0.7]
        assert len(set(leaders)) == 3
    assert mix.of("west").changes() == (48.0,)
    assert mix.of("centre").changes() == mix.of("east").changes() == (16.0,)


def test_regions_come_from_the_edges():
    assert regions_of(3) == ("west", "centre", "east")
    for name in ("three-tiers", "demo"):
        assert regions_of(Path(__file__).parents[2] / f"infra/edges/{name}.toml") == ("west", "centre", "east")


def test_leaders_share_four_fifths():
    assert led_by(["a", "b"], ["a", "b", "c", "d", "e"]) == {"a": 0.4, "b": 0.4, "c": 0.1, "d": 0.05, "e": 0.05}


def test_too_few_task_types_are_refused():
    with pytest.raises(ValueError, match="at least 3"):
        regional_mix(["a", "b"], ("west",), 10.0)


def test_the_load_is_the_same_for_both_runs_and_large_enough():
    first, second = (demo_load(ITEMS, ("east", "west"), num_tasks=720, duration_s=78.0, num_users=10, seed=0) for _ in range(2))
    assert first.plan == second.plan
    assert len(first.plan) >= 600
    assert {planned.region for planned in first.plan} == {"east", "west"}
    assert {planned.task_type for planned in first.plan} == set(TYPES)


async def test_a_stack_in_its_own_process_serves_and_is_heard():
    heard = []
    async with ChildStack(answering, lambda kind, body: heard.append((kind, body)), 60.0) as addresses:
        plan = [PlannedTask(0.01 * n, f"t{n}", "u", "west", "facts", f"facts-{n}", 0.5) for n in range(10)]
        result = await replay(addresses["broker"], plan, ITEMS, ReplayOptions(lead_s=0.05))
    assert len(result.completed) == 10
    assert heard == [("merge", b"an\nevent")]


async def test_a_stack_that_does_not_come_up_says_why():
    with pytest.raises(ChildError, match="model: no such directory"):
        async with ChildStack(broken, lambda kind, body: None, 60.0):
            pass


async def test_a_stack_that_vanishes_before_it_is_ready_is_noticed():
    with pytest.raises(ChildError, match="ended before it was ready"):
        async with ChildStack(vanishing, lambda kind, body: None, 60.0):
            pass


def make_activations(edge_id, version, counts, event_id):
    layers = [events_pb2.LayerCounts(counts=row) for row in counts]
    return events_pb2.ActivationReport(event_id=event_id, edge_id=edge_id, version=version, layers=layers, num_tasks=20)


def test_heat_maps_pair_what_an_edge_showed_before_and_after_its_last_update():
    totals = ActivationTotals()
    update = make_update("small", mix={"facts": 0.5, "question": 0.5})
    assert update.swap is not None
    before, after = [[9, 1], [5, 5]], [[1, 9], [0, 10]]
    for event_id in ("1", "1"):  # delivered twice, counted once
        totals.put(make_activations("small", update.swap.from_version, before, event_id))
    totals.put(make_activations("small", update.version, after, "2"))
    totals.put(make_activations("small", update.version, after, "3"))
    np.testing.assert_array_equal(totals.of("small", update.version), np.array([[2, 18], [0, 20]]))
    run = replace(make_run(), updates=(update, make_update("large")))
    profiles = {"facts": np.array([[1.0, 0.0], [1.0, 0.0]]), "question": np.array([[0.0, 1.0], [0.5, 0.5]])}
    [heat] = heat_maps(run, totals, profiles)
    assert heat.edge_id == "small"
    assert heat.base is not None
    np.testing.assert_allclose(heat.before, np.array([[0.9, 0.1], [0.5, 0.5]]))
    np.testing.assert_allclose(heat.after, np.array([[0.1, 0.9], [0.0, 1.0]]))
    np.testing.assert_allclose(heat.base, np.array([[0.5, 0.5], [0.75, 0.25]]))
    assert heat.after_mix == "facts 50%, question 50%"


def test_a_mix_without_a_profile_has_no_base_map():
    assert mixed({}, {"facts": 1.0}) is None
    assert mixed({"facts": np.ones((1, 1))}, {}) is None
