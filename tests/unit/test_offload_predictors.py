"""The online predictors and the prompt posterior, against known answers."""

from __future__ import annotations

import numpy as np
import pytest

from services.core.offload.posterior import PromptPosterior, words
from services.core.offload.predictors import OutputLengthPredictor, PromptLengthPredictor, QualityPredictor, StepTimePredictor
from services.core.offload.values import StepTimes
from tests.builders import make_step_times


def test_output_length_starts_at_the_profile_and_moves_to_what_is_observed():
    predictor = OutputLengthPredictor({"qa": 10.0})
    assert predictor.tokens({"qa": 1.0}, 32) == 10.0
    for _ in range(200):
        predictor.observe("qa", 4, 32)
    assert predictor.tokens({"qa": 1.0}, 32) == pytest.approx(4.0, abs=0.05)


def test_output_length_is_expected_over_the_posterior_and_capped_by_max_tokens():
    predictor = OutputLengthPredictor({"short": 2.0, "long": 50.0})
    assert predictor.tokens({"short": 0.5, "long": 0.5}, 100) == pytest.approx(26.0)
    assert predictor.tokens({"long": 1.0}, 8) == 8.0
    assert predictor.tokens({}, 3) == 3.0


def test_an_answer_cut_off_early_does_not_shorten_the_prediction():
    predictor = OutputLengthPredictor({"qa": 20.0})
    predictor.observe("qa", 3, max_tokens=3)
    assert predictor.tokens({"qa": 1.0}, 64) == 20.0


def test_late_profiles_do_not_overrule_observed_lengths():
    predictor = OutputLengthPredictor()
    predictor.observe("seen", 5, 32)
    predictor.learn_prior({"seen": 30.0, "new": 9.0})
    assert predictor.tokens({"seen": 1.0}, 64) == 5.0
    assert predictor.tokens({"new": 1.0}, 64) == 9.0


def test_prompt_tokens_are_learnt_from_what_workers_report():
    predictor = PromptLengthPredictor()
    for _ in range(200):
        predictor.observe(prompt_bytes=100, prompt_tokens=50)
    assert predictor.tokens(40) == 20
    assert predictor.tokens(0) == 1


def test_quality_is_the_manifests_until_scores_outweigh_it():
    predictor = QualityPredictor(prior_scores=20.0)
    manifest = {"qa": 0.8, "cloze": 0.4}
    assert predictor.quality("v1", "qa", manifest) == pytest.approx(0.8)
    for _ in range(20):
        predictor.observe("v1", "qa", 0.0)
    assert predictor.quality("v1", "qa", manifest) == pytest.approx(0.4)
    assert predictor.quality("v2", "qa", manifest) == pytest.approx(0.8)
    assert predictor.quality("v1", "unheard-of", manifest) == pytest.approx(0.6)
    assert predictor.quality("v1", "qa", {}) <= 0.5


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_a_score_outside_zero_to_one_is_refused(score):
    with pytest.raises(ValueError, match="from 0 to 1"):
        QualityPredictor().observe("v1", "qa", score)


def test_step_times_are_the_published_ones_until_tasks_were_observed():
    published = make_step_times()
    assert StepTimePredictor().step_times("e1", published) is published


def test_step_times_converge_on_an_edge_three_times_slower_than_published():
    published = StepTimes(step_base_s=0.01, step_row_s=0.002, prefill_base_s=0.02, prefill_token_s=0.0005)
    predictor, rng = StepTimePredictor(), np.random.default_rng(3)
    for _ in range(200):
        prompt, output, rows = int(rng.integers(5, 60)), int(rng.integers(1, 30)), float(rng.integers(1, 5))
        truth_s = 3 * (0.02 + 0.0005 * prompt + output * (0.01 + 0.002 * rows))
        predictor.observe("e1", published, prompt, output, rows, truth_s * float(rng.lognormal(0, 0.1)))
    learnt = predictor.step_times("e1", published)
    predicted_s = learnt.prefill_base_s + 30 * learnt.prefill_token_s + 12 * (learnt.step_base_s + 3 * learnt.step_row_s)
    assert predicted_s == pytest.approx(3 * (0.02 + 0.015 + 12 * 0.016), rel=0.1)


def test_step_times_learn_a_row_cost_that_was_published_as_zero():
    published = make_step_times(step_base_s=0.02)
    predictor, rng = StepTimePredictor(), np.random.default_rng(4)
    for _ in range(400):
        output, rows = int(rng.integers(4, 40)), float(rng.integers(1, 9))
        predictor.observe("e1", published, 10, output, rows, output * (0.02 + 0.0 * rows))
    learnt = predictor.step_times("e1", published)
    assert learnt.step_base_s + 4 * learnt.step_row_s == pytest.approx(0.02, rel=0.1)


def test_published_step_times_that_moved_far_replace_what_was_learnt():
    predictor, slow = StepTimePredictor(), make_step_times(step_base_s=0.5)
    predictor.observe("e1", make_step_times(), 10, 10, 1.0, 2.0)
    assert predictor.step_times("e1", make_step_times()) != make_step_times()
    assert predictor.step_times("e1", slow) == slow


def test_the_posterior_follows_the_words_of_the_prompt():
    counts = {"colour": {"which": 10, "colour": 10, "is": 10}, "sum": {"which": 10, "sum": 10, "of": 10}}
    posterior = PromptPosterior(counts).posterior("Which colour is it?")
    assert posterior["colour"] > 0.9
    assert sum(posterior.values()) == pytest.approx(1.0)


def test_a_prompt_of_unknown_words_leaves_the_posterior_near_uniform():
    counts = {t: {f"{t}-{n}": 5 for n in range(10)} for t in ("a", "b", "c")}
    assert PromptPosterior(counts).posterior("zzz") == pytest.approx({"a": 1 / 3, "b": 1 / 3, "c": 1 / 3})
    assert PromptPosterior({}).posterior("anything") == {}


def test_words_are_lower_case_and_punctuation_stands_alone():
    assert words("Does It? yes_no") == ["does", "it", "?", "yes_no"]
