"""The portfolio trigger: what a fleet of models is predicted to cost, and the best reply of one edge to the others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from services.core.merging.engine import MergeEngine
from services.core.merging.fleet import EdgeService, Prospect, candidate_mixes, fleet_cost
from services.core.merging.mix import expected
from services.core.merging.triggers import trigger
from services.core.merging.values import ActivationWindow, normalised
from tests.unit.merging_builders import TASK_TYPES, draw_counts, make_profiles, per_task

PROFILES = per_task(make_profiles(3, num_layers=4, num_experts=12, tokens_per_task=40))
EVEN = dict.fromkeys(TASK_TYPES, 1.0 / 3.0)


def pure(task_type):
    return {task_type: 1.0}


def quality_of(mix):
    """A model knows what it was merged for, in proportion to twice its share."""
    return {t: min(2.0 * mix.get(t, 0.0), 1.0) if len(mix) > 1 else float(t in mix) for t in TASK_TYPES}


PROSPECTS = tuple(Prospect(mix, quality_of(mix)) for mix in candidate_mixes(TASK_TYPES) if len(mix) == 1)


def make_service(**overrides):
    return replace(EdgeService(0.5, 0.8, 4, 0.0, PROSPECTS), **overrides)


def cost_of(models, rates, *, services=None, is_open=None, quality_scale=1.0):
    quality = np.array([[[quality_of(mix)[t] for t in TASK_TYPES] for mix in models]])
    services = services or [make_service()] * len(models)
    opened = np.ones((1, len(models)), dtype=bool) if is_open is None else np.array([is_open])
    return float(fleet_cost(np.array(rates)[:, None], quality, services, quality_scale, opened)[0])


def test_without_queues_a_fleet_that_knows_everything_costs_a_task_alone():
    assert cost_of([pure(t) for t in TASK_TYPES], [0.01, 0.01, 0.01]) == pytest.approx(0.5, abs=0.01)


def test_what_nobody_knows_costs_alpha_times_the_scale():
    known = cost_of([pure("facts")], [0.01, 0.0, 0.0])
    unknown = cost_of([pure("facts")], [0.0, 0.01, 0.0])
    assert unknown - known == pytest.approx(0.5, abs=0.01)  # alpha is 1/2 on average
    assert cost_of([pure("facts")], [0.0, 0.01, 0.0], quality_scale=4.0) - known == pytest.approx(2.0, abs=0.04)


def test_cost_grows_with_load_and_with_edges_that_are_away_and_never_falls_below_a_task_alone():
    models = [pure("facts"), pure("facts"), pure("pick")]
    costs = [cost_of(models, [rate, 0.2 * rate, 0.0]) for rate in (0.1, 2.0, 5.0, 8.0, 20.0)]
    assert costs == sorted(costs)
    assert costs[0] >= 0.5
    assert cost_of(models, [4.0, 0.5, 0.0], is_open=[False, True, True]) > cost_of(models, [4.0, 0.5, 0.0])


def test_the_cost_of_several_choices_at_once_is_that_of_each():
    rng = np.random.default_rng(5)
    quality, rates, regions = rng.random((6, 4, 3)), np.array([[3.0, 0.0], [1.0, 0.5], [0.0, 0.5]]), ("", "west")
    services = [
        make_service(full_s=s, slots=n, transfer_s={"west": far_s})
        for s, n, far_s in ((0.8, 4, 0.1), (0.6, 2, 0), (1.2, 4, 1), (0.8, 1, 0))
    ]
    together = fleet_cost(rates, quality, services, 1.0, np.ones((6, 4), dtype=bool), regions)
    alone = [fleet_cost(rates, quality[n : n + 1], services, 1.0, np.ones((1, 4), dtype=bool), regions)[0] for n in range(6)]
    assert together == pytest.approx(alone)


def regional_cost(rates, *transfers_s, regions=("", "east", "west")):
    """Of edges that all know "facts", which is all that is asked for, at so many tasks a second from each region."""
    services = [make_service(transfer_s=transfer_s) for transfer_s in transfers_s]
    quality = np.array([[[quality_of(pure("facts"))[t] for t in TASK_TYPES]] * len(services)])
    of_types = np.array([rates if t == "facts" else [0.0] * len(rates) for t in TASK_TYPES])
    return float(fleet_cost(of_types, quality, services, 1.0, np.ones((1, len(services)), dtype=bool), regions)[0])


def test_a_task_pays_for_the_way_to_the_edge_that_it_goes_to_and_users_of_no_region_for_none():
    near_west, near_east = {"west": 0.01, "east": 0.16}, {"west": 0.16, "east": 0.01}
    assert regional_cost([0.0, 0.0, 0.01], near_west) == pytest.approx(0.51, abs=0.002)
    assert regional_cost([0.0, 0.01, 0.0], near_west) == pytest.approx(0.66, abs=0.002)
    assert regional_cost([0.0, 0.01, 0.01], near_west, near_east) == pytest.approx(0.51, abs=0.002)
    assert regional_cost([0.01, 0.0, 0.0], near_west) == pytest.approx(0.5, abs=0.002)


def test_an_edge_takes_no_tasks_of_a_region_that_it_has_no_link_to_while_another_has():
    west_only, both = {"west": 0.01}, {"west": 0.3, "east": 0.3}
    assert regional_cost([0.0, 0.01, 0.0], west_only, both) == pytest.approx(0.8, abs=0.002)
    assert regional_cost([0.0, 0.01, 0.0], {"west": 0.01, "default": 0.1}, both) == pytest.approx(0.6, abs=0.002)
    assert regional_cost([0.0, 0.01, 0.0], {}, both) == pytest.approx(0.5, abs=0.002)  # without links it is near to all


class Fleet:
    """Edges of one engine, by name with the task type that each begins with; tasks go where they are known, as ONTO sends them."""

    def __init__(self, first, **options):
        self.engine = MergeEngine(trigger("portfolio", **options))
        self.rng = np.random.default_rng(11)
        self.models = {}
        self.deploys = True
        self.pinned: set[str] = set()
        self.every_s = 10.0  # reports come so often; checks every ten seconds
        self.regions: dict[str, dict[str, float]] = {}  # shares of each edge's tasks, by its name
        for edge_id, task_type in first.items():
            self.deploy(edge_id, pure(task_type), 0.0)
            self.engine.describe(edge_id, make_service())

    def deploy(self, edge_id, mix, now_s):
        reference = normalised(expected(PROFILES, mix))
        self.models[edge_id] = dict(mix)
        self.engine.deployed(edge_id, "+".join(sorted(mix)), reference, PROFILES, mix, now_s, quality_of(mix))

    def serve(self, mix, rate_per_s, start_s, end_s):
        """Ten seconds at a time: tasks, reports, checks, updates at once. What was asked for, in order."""
        asked = []
        for now_s in np.arange(start_s + 10.0, end_s + 1.0, 10.0):
            routed = self._routed(mix, rate_per_s * self.every_s) if now_s % self.every_s == 0.0 else {}
            for edge_id, tasks in routed.items():
                num_tasks = int(sum(tasks.values()))
                if num_tasks:
                    counts = draw_counts(self.rng, PROFILES, {t: n / num_tasks for t, n in tasks.items()}, num_tasks)
                    version = self.engine.deployed_version(edge_id) or ""
                    regions = {region: round(share * num_tasks) for region, share in self.regions.get(edge_id, {}).items()}
                    window = ActivationWindow(edge_id, version, counts, num_tasks, now_s - self.every_s, now_s, regions)
                    self.engine.observe(window, now_s)
            for edge_id in sorted(self.models.keys() - self.pinned):
                request = self.engine.check(edge_id, now_s)
                if request is not None:
                    asked.append((now_s, edge_id, dict(request.mix)))
                    if self.deploys:
                        self.deploy(edge_id, request.mix, now_s)
        return asked

    def told(self, edge_id):
        """The action and the reason of the latest decision."""
        decision = self.engine.decision(edge_id)
        assert decision is not None
        return decision.action, decision.reason

    def _routed(self, mix, num_tasks):
        routed: dict[str, dict[str, int]] = {edge_id: {} for edge_id in self.models}
        for task_type, share in mix.items():
            knowing = [e for e, model in sorted(self.models.items()) if task_type in model] or sorted(self.models)
            for edge_id in knowing:
                routed[edge_id][task_type] = round(share * num_tasks / len(knowing))
        return routed


def test_edges_that_all_know_the_same_share_out_what_is_asked_for():
    fleet = Fleet({"a": "facts", "b": "facts", "c": "facts"})
    fleet.serve(EVEN, 3.0, 0.0, 200.0)
    assert sorted(next(iter(model)) for model in fleet.models.values()) == sorted(TASK_TYPES)


def test_a_fleet_that_fits_its_demand_is_left_alone():
    fleet = Fleet({"a": "facts", "b": "pick", "c": "pronoun"})
    assert fleet.serve(EVEN, 3.0, 0.0, 400.0) == []
    assert fleet.told("a")[0] == "keep"


def test_when_demand_moves_edges_follow_it_and_one_stays_behind_for_the_rest():
    fleet = Fleet({"a": "facts", "b": "facts", "c": "pick"})
    assert fleet.serve({"facts": 0.8, "pick": 0.2}, 8.0, 0.0, 200.0) == []
    moved = fleet.serve({"facts": 0.2, "pick": 0.8}, 8.0, 200.0, 400.0)
    assert sorted(next(iter(model)) for model in fleet.models.values()) == ["facts", "pick", "pick"]
    assert len(moved) == 1
    assert moved[0][0] <= 260.0  # a change is noticed within a few checks, though demand is averaged over minutes


def test_of_two_edges_alike_the_one_near_to_the_users_learns_what_they_ask_for():
    near_west, near_east = {"west": 0.01, "east": 0.3}, {"west": 0.3, "east": 0.01}
    learnt = {}
    for region in ("west", "east"):
        fleet = Fleet({"a": "pronoun", "b": "pronoun", "c": "facts"})
        for edge_id, transfer_s in (("a", near_west), ("b", near_east), ("c", {"west": 0.1, "east": 0.1})):
            fleet.engine.describe(edge_id, make_service(transfer_s=transfer_s))
            fleet.regions[edge_id] = {region: 1.0}
        fleet.serve({"pick": 0.6, "facts": 0.4}, 4.0, 0.0, 100.0)
        learnt[region] = [edge_id for edge_id, model in fleet.models.items() if model == pure("pick")]
    assert learnt["west"][:1] == ["a"]
    assert learnt["east"][:1] == ["b"]


def test_reports_of_an_edge_wait_until_it_is_known_how_it_serves():
    fleet = Fleet({"a": "facts"})
    fleet.engine.describe("a", None)
    fleet.serve({"pick": 1.0}, 3.0, 0.0, 60.0)
    assert fleet.engine.num_tasks("a") == 180
    fleet.engine.describe("a", make_service())
    assert [mix for _, _, mix in fleet.serve({"pick": 1.0}, 3.0, 60.0, 80.0)] == [pure("pick")]


def test_an_update_has_to_pay_for_the_time_in_which_the_edge_is_away():
    cheap, dear = (Fleet({"a": "facts", "b": "facts"}, horizon_s=30.0) for _ in range(2))
    for edge_id in ("a", "b"):
        dear.engine.describe(edge_id, make_service(downtime_s=1e5))
    mix = {"facts": 0.6, "pick": 0.4}
    assert cheap.serve(mix, 6.0, 0.0, 100.0) != []
    assert dear.serve(mix, 6.0, 0.0, 100.0) == []
    assert "than the update costs" in dear.told("a")[1]


def test_an_edge_whose_report_is_still_to_come_is_not_taken_to_be_idle():
    often, seldom = (Fleet({"a": "facts", "b": "facts"}) for _ in range(2))
    seldom.every_s = 30.0
    for fleet in (often, seldom):
        fleet.serve({"facts": 1.0}, 6.0, 0.0, 130.0)  # 10 s after the last report of `seldom`
    costs_s = [int(fleet.told("a")[1].split(" ms of ")[1].split()[0]) for fleet in (often, seldom)]
    assert costs_s[1] == pytest.approx(costs_s[0], rel=0.03)


def test_the_fewer_tasks_were_counted_the_more_an_update_has_to_save():
    """One task in six is of a type that nobody knows: after a few tasks that may be chance, after many it is not."""
    fleet = Fleet({"a": "facts", "b": "facts", "c": "facts"}, doubt=2.0)
    asked = fleet.serve({"facts": 5.0 / 6.0, "pick": 1.0 / 6.0}, 1.2, 0.0, 400.0)
    assert [mix for _, _, mix in asked] == [pure("pick")]
    sure = Fleet({"a": "facts", "b": "facts", "c": "facts"}, doubt=0.0)
    assert sure.serve({"facts": 5.0 / 6.0, "pick": 1.0 / 6.0}, 1.2, 0.0, 400.0)[0][0] < asked[0][0]


def test_a_lone_edge_that_knows_what_many_ask_for_is_not_taken_away_before_another_learns_it():
    fleet = Fleet({"a": "facts", "b": "facts", "c": "pick"})
    fleet.serve({"facts": 0.8, "pick": 0.2}, 8.0, 0.0, 200.0)
    fleet.serve({"facts": 0.2, "pick": 0.8}, 8.0, 200.0, 210.0)
    assert fleet.models["c"] == pure("pick")
    assert "once " in fleet.told("c")[1]


def test_an_update_under_way_counts_as_done_so_that_two_edges_do_not_take_the_same_place():
    fleet = Fleet({"a": "facts", "b": "facts", "c": "facts"})
    fleet.deploys = False
    asked = fleet.serve({"facts": 0.7, "pick": 0.3}, 2.0, 0.0, 60.0)
    assert [mix for _, _, mix in asked] == [pure("pick")]


def test_an_edge_of_which_nothing_is_known_is_not_decided_about():
    fleet = Fleet({"a": "facts", "b": "pick"})
    fleet.engine.describe("a", None)
    fleet.serve({"pronoun": 1.0}, 3.0, 0.0, 60.0)
    assert fleet.told("a")[0] == "skip"
    assert "not known" in fleet.told("a")[1]
    assert fleet.models["b"] == pure("pronoun")


def test_tasks_of_an_edge_that_serves_no_more_still_come_and_fall_to_the_others():
    whole, broken = (Fleet({"a": "facts", "b": "facts", "c": "facts"}) for _ in range(2))
    for fleet in (whole, broken):
        for edge_id in ("a", "b", "c"):
            fleet.engine.describe(edge_id, make_service(transfer_s={"west": 0.01, "east": 0.02}))
            fleet.regions[edge_id] = {"west": 0.5}
        fleet.serve({"facts": 1.0}, 9.0, 0.0, 100.0)
        if fleet is broken:
            fleet.engine.describe("a", None)
        fleet.every_s = 1000.0
        fleet.serve({"facts": 1.0}, 9.0, 100.0, 110.0)
    costs_s = [int(fleet.told("c")[1].split(" ms of ")[1].split()[0]) for fleet in (whole, broken)]
    assert costs_s[1] > 1.05 * costs_s[0]


def test_tasks_of_an_edge_that_is_not_checked_count_and_it_holds_up_nobody():
    """A pinned edge keeps its model and its counts: the others learn what it does not know."""
    fleet = Fleet({"a": "facts", "b": "facts"})
    fleet.pinned = {"a"}
    fleet.serve({"facts": 0.5, "pick": 0.5}, 4.0, 0.0, 80.0)
    assert fleet.models == {"a": pure("facts"), "b": pure("pick")}


def test_averages_of_a_process_before_this_one_start_anew():
    first = Fleet({"a": "facts", "b": "facts"})
    first.serve({"facts": 1.0}, 4.0, 1e6, 1e6 + 60.0)
    second = Fleet({"a": "facts", "b": "facts"})
    for edge_id in ("a", "b"):
        second.engine.restore(edge_id, first.engine.dump(edge_id, 1e6 + 60.0), 0.0)
        second.engine.describe(edge_id, make_service())
    second.serve({"facts": 0.5, "pick": 0.5}, 4.0, 0.0, 60.0)
    assert sorted(next(iter(model)) for model in second.models.values()) == ["facts", "pick"]
