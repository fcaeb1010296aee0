"""Models of the simulator: the measured profile of the demo model, and stated distributions."""

from __future__ import annotations

import json

import numpy as np
import pytest

from loadgen.simulator.errors import ProfileError, ScenarioError
from loadgen.simulator.measured import packed, read_profile, unpacked
from loadgen.simulator.scenario import PROFILES
from loadgen.simulator.stated import StatedModel, StatedOptions

DEMO = PROFILES / "demo.json"


def test_a_model_merged_for_one_task_keeps_it_and_forgets_the_others():
    demo = read_profile(DEMO)
    for own in demo.task_types:
        version = demo.version({own: 1.0}, 0.22)
        assert version.quality[own] > 0.9
        assert max(version.quality[t] for t in demo.task_types if t != own) < 0.3


def test_more_memory_keeps_more_and_the_whole_model_keeps_all():
    demo = read_profile(DEMO)
    pair = {"facts": 0.5, "question": 0.5}
    means = [np.mean([demo.version(pair, share).quality[t] for t in pair]) for share in (0.22, 0.37, 1.0)]
    assert means[0] <= means[1] <= means[2]
    assert means[2] > 0.95


def test_a_mix_that_was_not_measured_is_served_by_the_nearest_with_its_own_reference():
    demo = read_profile(DEMO)
    asked, measured = demo.version({"facts": 0.95, "question": 0.05}, 0.33), demo.version({"facts": 1.0}, 0.30)
    assert asked.quality == measured.quality
    assert asked.version != measured.version
    assert not np.array_equal(asked.reference, measured.reference)
    assert asked.reference.sum(axis=1) == pytest.approx(1.0)


def test_equal_requests_give_the_same_version():
    demo = read_profile(DEMO)
    assert demo.version({"facts": 0.5, "pronoun": 0.5}, 0.22) is demo.version({"pronoun": 0.5, "facts": 0.5}, 0.22)


def test_memory_below_what_was_measured_is_refused():
    with pytest.raises(ProfileError, match=r"memory_share is 0\.1: the profile has measured 0\.22 and more"):
        read_profile(DEMO).version({"facts": 1.0}, 0.1)


def test_lengths_come_from_measured_tasks_and_agree_with_the_stated_mean():
    demo = read_profile(DEMO)
    for task_type, mean in demo.mean_output_tokens().items():
        drawn = demo.lengths(task_type, 20_000, np.random.default_rng(0))
        assert drawn.output_tokens.mean() == pytest.approx(mean, rel=0.02)
        assert drawn.output_tokens.min() >= 1
        assert (drawn.prompt_bytes > drawn.prompt_tokens).all()


def test_counts_are_kept_to_a_hundredth():
    counts = np.random.default_rng(0).random((12, 32)) * 9.0
    assert np.abs(unpacked(packed(counts), (12, 32)) - counts).max() <= 0.005 + 1e-12


@pytest.mark.parametrize("broken", ["not json", '{"format": 99}', '{"format": 1}'])
def test_a_broken_profile_is_refused_with_the_way_to_a_new_one(tmp_path, broken):
    path = tmp_path / "broken.json"
    path.write_text(broken)
    with pytest.raises(ProfileError, match=r"make (one with python -m loadgen|the profile again)"):
        read_profile(path)


def test_a_profile_whose_counts_are_cut_is_refused(tmp_path):
    document = json.loads(DEMO.read_text())
    document["full_counts"]["facts"] = document["full_counts"]["facts"][:40]
    path = tmp_path / "cut.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ProfileError):
        read_profile(path)


def test_a_stated_model_keeps_types_whole_by_their_share_until_memory_is_full():
    model = StatedModel(StatedOptions(("a", "b", "c"), own_quality=0.9, other_quality=0.1, whole_share=0.2))
    quality = model.version({"b": 0.7, "a": 0.3}, 0.3).quality
    assert quality == pytest.approx({"a": 0.5, "b": 0.9, "c": 0.1})
    assert model.version({"b": 1.0}, 1.0).quality == pytest.approx({"a": 0.9, "b": 0.9, "c": 0.9})


@pytest.mark.parametrize("distribution", ["constant", "geometric", "uniform"])
def test_stated_lengths_have_the_stated_mean(distribution):
    model = StatedModel(StatedOptions(("a",), output_tokens=12.0, output_distribution=distribution))
    assert model.lengths("a", 50_000, np.random.default_rng(1)).output_tokens.mean() == pytest.approx(12.0, rel=0.02)


def test_a_distribution_that_does_not_exist_is_refused():
    with pytest.raises(ScenarioError, match="choose one of constant, geometric, uniform"):
        StatedOptions(("a",), output_distribution="normal")
