"""The rivals at equal bytes that need no adaptation: how they are measured, what edges hold of them, and that they stay as they are."""

from __future__ import annotations

import json

import numpy as np
import pytest

from loadgen.simulator.comparison import arms, compare
from loadgen.simulator.errors import ProfileError, ScenarioError
from loadgen.simulator.holdings import average_mix, held_at_first
from loadgen.simulator.load import draw_load
from loadgen.simulator.measured import Unmerged, read_profile, unpacked
from loadgen.simulator.measuring import extended, mixes
from loadgen.simulator.quantising import least_used, unmerged_rows
from loadgen.simulator.scenario import PROFILES, EdgeGroup, LoadOptions, Phase, Scenario, scenario
from loadgen.simulator.sites import edge_sites
from loadgen.simulator.stated import StatedModel, StatedOptions
from services.model.build import Builder
from services.model.calibration import answer_limit, measure
from services.model.checkpoint import read_base
from services.model.manifest import TaskProfile
from services.model.memory import budget_for
from services.model.profile import share_bytes
from services.model.quantise import quantised_bytes
from tests.unit.pico import pico_tasks, write_pico_checkpoint

DEMO = PROFILES / "demo.json"


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pico")
    return Builder(read_base(write_pico_checkpoint(directory / "model"), "float32"), pico_tasks(6), directory / "cache")


@pytest.fixture(scope="module")
def unmerged(builder):
    """For a budget that holds a 25th of all experts, so not even one bit of each."""
    base, scored = builder.base, pico_tasks(4, seed=1)
    items = {t: scored.of_type(t) for t in scored.task_types}

    def scores(model):
        return measure(model, base.tokenizer, items, builder.scorers, answer_limit(base.tokenizer, items))

    return unmerged_rows(base, scores(base.model), [share_bytes(builder, 0.04)], scores, lambda _: None)


def test_every_width_is_measured_and_below_one_bit_experts_are_dropped_until_it_fits(builder, unmerged):
    rows, model = unmerged["rows"], builder.base.model
    assert [(row["bits"], row["experts_dropped"]) for row in rows[:8]] == [(bits, 0) for bits in range(8, 0, -1)]
    assert [row["model_bytes"] for row in rows[:8]] == [quantised_bytes(model, bits) for bits in range(8, 0, -1)]
    rest = budget_for(model, 0).non_expert_bytes
    each = (quantised_bytes(model, 1) - rest) / 32
    budget = share_bytes(builder, 0.04)
    (dropped,) = rows[8:]
    assert dropped["experts_dropped"] == 32 - int((budget - rest) // each) > 0
    assert budget - each < dropped["model_bytes"] <= budget


def test_a_profile_is_extended_by_the_unmerged_model_and_keeps_the_rest(builder, unmerged):
    before = {"base_model": builder.base.base_id, "step_times": {"step_base_s": 0.5}, "versions": [{"share": 0.04}]}
    after = extended(before, builder, pico_tasks(4, seed=1), 4)
    assert after == {**before, "unmerged": unmerged}
    with pytest.raises(ValueError, match="give the model that it is of"):
        extended({**before, "base_model": "another"}, builder, pico_tasks(4), 4)


def test_the_least_used_experts_are_counted_over_one_task_of_each_type():
    one, two = np.array([[0.5, 0.5], [0.9, 0.1]]), np.array([[0.2, 0.8], [0.5, 0.5]])
    profiles = {"a": TaskProfile(one, np.array([10.0, 10.0])), "b": TaskProfile(two, np.array([10.0, 1.0]))}
    assert least_used(profiles, 2) == [(1, 1), (0, 0)]  # 1.5 and 7 of 7, 13, 9.5 and 1.5 tokens


def test_rows_read_back_with_what_the_quantised_routers_showed(unmerged):
    model, row = Unmerged(unmerged, ("left", "right"), (4, 8)), unmerged["rows"][8]
    held = model.largest(0.04)
    assert (held.bits, held.experts_dropped, held.model_bytes) == (1, row["experts_dropped"], row["model_bytes"])
    assert np.array_equal(held.profiles["left"], unpacked(row["counts"]["left"], (4, 8)))
    assert model.largest(0.99).bits == 8
    with pytest.raises(ProfileError, match="the smallest unmerged model has"):
        model.largest(0.01)


def test_the_demo_model_knows_more_at_more_bits_and_all_of_it_in_full():
    demo = read_profile(DEMO)
    held = [demo.quantised(share) for share in (0.22, 0.30, 0.37, 1.0)]
    assert [version.version for version in held[:3]] == ["unmerged, 2 bits", "unmerged, 3 bits", "unmerged, 4 bits"]
    means = [np.mean(list(version.quality.values())) for version in held]
    assert means[0] < 0.05 < means[1] < 0.2 < means[2] < 0.8 < means[3]


def test_a_profile_without_the_unmerged_model_says_how_to_add_it(tmp_path):
    told = json.loads(DEMO.read_text())
    del told["unmerged"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(told))
    with pytest.raises(ProfileError, match=r"measuring --extend"):
        read_profile(path).quantised(0.22)


def test_a_stated_model_scores_what_is_stated_when_quantised():
    model = StatedModel(StatedOptions(("a", "b"), quantised_quality=0.4))
    assert model.quantised(0.3).quality == {"a": 0.4, "b": 0.4}
    assert model.quantised(1.0).quality == model.version({"a": 1.0}, 1.0).quality
    with pytest.raises(ScenarioError, match=r"quantised_quality is 0\.95"):
        StatedOptions(("a",), quantised_quality=0.95)


def drifting(**overrides) -> Scenario:
    model = StatedModel(StatedOptions(("a", "b", "c"), whole_share=0.1))
    phases = (Phase(0.0, {"a": 1.0}), Phase(0.5, {"b": 0.5, "c": 0.5}))
    values = {"name": "made", "about": "", "model": model, "edges": (EdgeGroup("one", count=3), EdgeGroup("two", memory_share=0.3))}
    return Scenario(**{**values, "load": LoadOptions(8.0, phases=phases), "duration_s": 120.0, **overrides})


def test_static_edges_of_a_size_hold_the_same_merge_for_the_average_of_the_load():
    made = drifting()
    load = draw_load(made, 1)
    mix = average_mix(load)
    assert mix == pytest.approx({"a": 0.5, "b": 0.25, "c": 0.25}, abs=0.05)
    held = held_at_first(made, load, edge_sites(made, 1), 1, "static")
    assert tuple(one.version for one in held) == (*[made.model.version(mix, 0.22)] * 3, made.model.version(mix, 0.3))


def test_arms_at_equal_bytes_run_beside_ours_and_never_update():
    chosen = arms(["ours", "quantised", "static"], ["jtom", "never"])
    assert [(arm.name, arm.trigger) for arm in chosen] == [("ours", "portfolio"), ("quantised", "never"), ("static", "never")]
    compared = compare(drifting(), chosen, (1,), lambda *_: None)
    for name in ("quantised", "static"):
        assert compared.summary(name)["updates"].mean == 0.0
    assert compared.summary("quantised")["mean_quality"].mean == pytest.approx(0.5)


def test_the_quantised_arm_of_the_demo_beats_what_is_merged_once_for_the_average():
    compared = compare(scenario("drift", duration_s=120.0), arms(["quantised", "static"], ["jtom"]), (1,), lambda *_: None)
    assert compared.paired("quantised", "static", "positive_cost").mean < 0.0


def test_on_five_tasks_quantising_beats_every_merge_of_the_same_bytes_on_the_type_that_needs_experts():
    model = read_profile(PROFILES / "five-tasks.json")
    for share in (0.06, 0.12, 0.22, 0.37):
        best_merge = max(model.version(mix, share).quality["squad"] for mix in mixes(model.task_types))
        assert model.quantised(share).quality["squad"] > best_merge
