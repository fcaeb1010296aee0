"""The merge engine: windows are sums of reports of the deployed version, requests stay open until answered, state survives a restart."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.merging.engine import MergeEngine
from services.core.merging.errors import CountsError, StateError
from services.core.merging.triggers import trigger
from services.core.merging.values import normalised
from services.core.merging.windows import MAX_REPORTS
from tests.unit.merging_builders import draw_counts, make_profiles, make_report, per_task

EXPECTED = per_task(make_profiles(3, num_layers=6, num_experts=16, tokens_per_task=40))
MIX = {"facts": 0.6, "pick": 0.4}
OTHER = {"pronoun": 1.0}


def reference(mix):
    return normalised(sum(share * EXPECTED[t] for t, share in mix.items()))


def make_engine(name="jtom", *, cool_down_s=0.0, **trigger_options):
    engine = MergeEngine(trigger(name, **trigger_options), cool_down_s=cool_down_s, backoff_s=5.0, backoff_cap_s=12.0)
    engine.deployed("edge-a", "v1", reference(MIX), EXPECTED, MIX, now_s=0.0)
    return engine


def feed(engine, mix, *, reports=6, version="v1", seed=0, edge_id="edge-a"):
    rng = np.random.default_rng(seed)
    for _ in range(reports):
        engine.observe(make_report(draw_counts(rng, EXPECTED, mix, 20), version=version, edge_id=edge_id), 0.0)


def test_changed_traffic_asks_for_the_mix_behind_it():
    engine = make_engine()
    feed(engine, OTHER)
    assert engine.check("edge-a", 19.9) is None
    request = engine.check("edge-a", 20.0)
    assert request is not None
    assert (request.mix, request.present_version, request.num_tasks, request.raw) == (OTHER, "v1", 120, False)
    assert request.shift > 0.2
    assert request.residual < 0.1
    assert np.allclose(request.frequencies.sum(axis=1), 1.0)


def test_paper_mode_asks_for_the_frequencies_themselves():
    engine = make_engine(mode="paper")
    feed(engine, OTHER)
    request = engine.check("edge-a", 20.0)
    assert request is not None
    assert request.raw


def test_unchanged_traffic_asks_for_nothing_and_says_why():
    engine = make_engine()
    feed(engine, MIX)
    assert engine.check("edge-a", 20.0) is None
    decision = engine.decision("edge-a")
    assert decision is not None
    assert (decision.action, engine.num_tasks("edge-a"), engine.due_at_s("edge-a")) == ("keep", 0, 100.0)


def test_nothing_is_asked_twice_while_an_update_is_under_way():
    engine = make_engine()
    feed(engine, OTHER)
    assert engine.check("edge-a", 20.0) is not None
    feed(engine, {"facts": 1.0}, reports=10)
    assert engine.pending("edge-a")
    assert engine.check("edge-a", 1000.0) is None


def test_reports_of_another_version_or_edge_are_discarded():
    engine = make_engine()
    assert not engine.observe(make_report(np.ones((6, 16)), version="v0"), 0.0)
    assert not engine.observe(make_report(np.ones((6, 16)), edge_id="edge-z"), 0.0)
    assert engine.observe(make_report(np.ones((6, 16))), 0.0)
    assert engine.num_tasks("edge-a") == 20


def test_a_deployment_starts_a_new_window_and_keeps_the_interval():
    engine = make_engine(cool_down_s=30.0)
    feed(engine, OTHER)
    assert engine.check("edge-a", 30.0) is not None
    engine.deployed("edge-a", "v2", reference(OTHER), EXPECTED, OTHER, now_s=40.0)
    assert (engine.interval_s("edge-a"), engine.due_at_s("edge-a"), engine.num_tasks("edge-a")) == (1.0, 70.0, 0)
    feed(engine, OTHER, version="v2")
    assert engine.check("edge-a", 70.0) is None
    assert engine.decision("edge-a").action == "keep"


def test_a_failed_update_backs_off_and_asks_again_with_the_same_counts():
    engine = make_engine()
    feed(engine, OTHER)
    first = engine.check("edge-a", 20.0)
    engine.failed("edge-a", 21.0)
    assert engine.check("edge-a", 25.9) is None
    again = engine.check("edge-a", 26.0)
    assert (again.mix, again.num_tasks) == (first.mix, first.num_tasks)
    engine.failed("edge-a", 27.0)
    assert engine.due_at_s("edge-a") == 37.0
    engine.check("edge-a", 37.0)
    engine.failed("edge-a", 38.0)
    assert engine.due_at_s("edge-a") == 50.0


def test_a_request_for_what_is_deployed_already_is_closed_without_a_new_version():
    engine = make_engine("periodic", interval_s=10.0)
    feed(engine, MIX)
    assert engine.check("edge-a", 10.0) is not None
    engine.satisfied("edge-a", 11.0)
    assert not engine.pending("edge-a")
    assert engine.due_at_s("edge-a") == 20.0


def test_edges_have_intervals_of_their_own():
    engine = make_engine()
    engine.deployed("edge-b", "v1", reference(MIX), EXPECTED, MIX, now_s=0.0)
    feed(engine, MIX)
    feed(engine, OTHER, edge_id="edge-b")
    assert engine.check("edge-a", 20.0) is None
    assert engine.check("edge-b", 20.0) is not None
    assert (engine.interval_s("edge-a"), engine.interval_s("edge-b")) == (80.0, 1.0)
    assert engine.edges == ("edge-a", "edge-b")


def test_a_check_can_be_put_off_and_an_edge_forgotten():
    engine = make_engine()
    engine.postponed("edge-a", 5.0, 100.0)
    assert engine.due_at_s("edge-a") == 105.0
    engine.forget("edge-a")
    assert engine.edges == ()
    assert engine.deployed_version("edge-a") is None


def test_counts_that_cannot_be_are_refused():
    engine = make_engine()
    with pytest.raises(CountsError, match="negative"):
        engine.observe(make_report(-np.ones((6, 16))), 0.0)
    with pytest.raises(CountsError, match="shape"):
        engine.observe(make_report(np.ones((6, 8))), 0.0)
    with pytest.raises(CountsError, match="no part of its 20 tasks"):
        engine.observe(replace(make_report(np.ones((6, 16)), num_tasks=20), tasks_by_region={"west": 21}), 0.0)
    with pytest.raises(CountsError, match="manifest of v9"):
        engine.deployed("edge-a", "v9", np.ones((2, 2)) / 2, EXPECTED, MIX, 0.0)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999), splits=st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_how_counts_are_split_into_reports_makes_no_difference_to_their_sum(seed, splits):
    rng = np.random.default_rng(seed)
    counts = [rng.integers(0, 50, size=(6, 16)) for _ in range(sum(splits))]
    fine, coarse = make_engine(), make_engine()
    start = 0
    for split in splits:
        for part in counts[start : start + split]:
            fine.observe(make_report(part, num_tasks=20), 0.0)
        coarse.observe(make_report(np.sum(counts[start : start + split], axis=0), num_tasks=20 * split), 0.0)
        start += split
    fine.check("edge-a", 20.0)
    coarse.check("edge-a", 20.0)
    assert fine.decision("edge-a").shift == pytest.approx(coarse.decision("edge-a").shift, abs=1e-12)


def test_a_restart_loses_nothing_though_the_clock_starts_again():
    engine = make_engine(adjustment_s=7.0)
    feed(engine, MIX)
    engine.check("edge-a", 20.0)
    feed(engine, OTHER, reports=3)
    saved = engine.dump("edge-a", 30.0)
    other = MergeEngine(trigger("jtom", adjustment_s=7.0))
    other.restore("edge-a", saved, 1000.0)
    assert (other.interval_s("edge-a"), other.due_at_s("edge-a"), other.num_tasks("edge-a")) == (27.0, 1017.0, 60)
    assert other.deployed_version("edge-a") == "v1"
    assert other.dump("edge-a", 1000.0) == saved
    feed(engine, OTHER, reports=3, seed=1)
    feed(other, OTHER, reports=3, seed=1)
    first, second = engine.check("edge-a", 47.0), other.check("edge-a", 1017.0)
    assert first is not None
    assert second is not None
    assert (first.mix, first.shift, first.reason) == (second.mix, second.shift, second.reason)


def test_where_tasks_came_from_survives_a_restart_and_reports_that_are_added_together():
    engine, told = make_engine(), {"east": 5, "west": 12}
    for _ in range(MAX_REPORTS + 1):
        engine.observe(replace(make_report(np.ones((6, 16), dtype=np.int64), num_tasks=20), tasks_by_region=told), 0.0)
    other = MergeEngine(trigger("jtom"))
    other.restore("edge-a", engine.dump("edge-a", 1.0), 500.0)
    saved = json.loads(other.dump("edge-a", 501.0))["reports"]
    assert len(saved) <= MAX_REPORTS
    for region, num_tasks in told.items():
        assert sum(report["tasks_by_region"][region] for report in saved) == num_tasks * (MAX_REPORTS + 1)


def test_a_restart_in_the_middle_of_an_update_asks_again():
    engine = make_engine()
    feed(engine, OTHER)
    first = engine.check("edge-a", 20.0)
    other = MergeEngine(trigger("jtom"))
    other.restore("edge-a", engine.dump("edge-a", 21.0), 500.0)
    again = other.check("edge-a", 500.0)
    assert again is not None
    assert again.mix == first.mix


@pytest.mark.parametrize("data", [b"", b"[]", b'{"format":1}', b'{"format":99}', b"\xff", b"null"])
def test_saved_state_that_cannot_be_read_is_refused_and_changes_nothing(data):
    engine = make_engine()
    with pytest.raises(StateError, match="saved state of edge-a"):
        engine.restore("edge-a", data, 0.0)
    assert engine.deployed_version("edge-a") == "v1"


def test_saved_state_of_another_trigger_or_of_bent_shape_is_refused():
    saved = make_engine().dump("edge-a", 0.0)
    with pytest.raises(StateError, match="of trigger 'jtom', not 'never'"):
        make_engine("never").restore("edge-a", saved, 0.0)
    bent = json.loads(saved)
    bent["profiles"]["facts"] = [[1.0]]
    with pytest.raises(StateError, match="different shapes"):
        make_engine().restore("edge-a", json.dumps(bent).encode(), 0.0)
