"""The activation shift and the mix behind a window, against known answers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.merging.errors import CountsError, MixError
from services.core.merging.mix import distance, explain
from services.core.merging.shift import activation_shift, excess_between, noise_shift
from services.core.merging.snapping import largest_remainder
from services.core.merging.values import normalised
from tests.unit.merging_builders import draw_counts, make_profiles, per_task


@pytest.mark.parametrize(("num_tokens", "published"), [(200, 0.16), (1000, 0.07), (5000, 0.03)])
def test_sampling_noise_of_an_unchanged_distribution_is_as_published(num_tokens, published):
    assert noise_shift(32, num_tokens) == pytest.approx(published, abs=0.005)
    rng = np.random.default_rng(1)
    uniform = np.full((1, 32), 1 / 32)
    seen = []
    for _ in range(400):
        counts = rng.multinomial(num_tokens, uniform[0])[None]
        seen.append(activation_shift(normalised(counts), uniform, counts, 1).value)
    assert np.mean(seen) == pytest.approx(noise_shift(32, num_tokens), rel=0.06)


def test_the_shift_is_the_mean_total_variation_of_the_layers():
    reference = np.array([[0.5, 0.5], [1.0, 0.0]])
    counts = np.array([[1000, 0], [1000, 0]])
    shift = activation_shift(normalised(counts), reference, counts, 500)
    assert (shift.value, shift.layers_counted, shift.enough) == (0.25, 2, True)


def test_layers_with_too_few_tokens_do_not_count_and_half_of_them_must():
    reference = np.full((3, 2), 0.5)
    counts = np.array([[600, 0], [499, 0], [10, 0]])
    shift = activation_shift(normalised(counts), reference, counts, 500)
    assert (shift.layers_counted, shift.enough) == (1, False)
    counts[1, 0] = 500
    assert activation_shift(normalised(counts), reference, counts, 500).enough


def test_layers_that_calibration_never_reached_do_not_count():
    reference = np.array([[0.5, 0.5], [0.0, 0.0]])
    counts = np.array([[400, 400], [800, 0]])
    assert activation_shift(normalised(counts), reference, counts, 500).value == pytest.approx(0.0)


def test_no_tokens_at_all_is_no_shift_and_not_enough_even_without_a_minimum():
    shift = activation_shift(np.zeros((2, 2)), np.full((2, 2), 0.5), np.zeros((2, 2), dtype=np.int64), 0)
    assert (shift.value, shift.enough) == (0.0, False)


def test_windows_of_equal_traffic_differ_by_noise_alone_and_windows_that_cannot_be_compared_never_agree():
    rng = np.random.default_rng(2)
    row = rng.dirichlet(np.full(32, 0.3), size=12)
    excess = []
    for _ in range(200):
        first, second = (np.stack([rng.multinomial(300, p) for p in row]) for _ in range(2))
        excess.append(excess_between(first, second, 100))
    assert abs(np.mean(excess)) < 0.01
    assert max(excess) < 0.05
    assert excess_between(np.zeros((2, 2), dtype=np.int64), np.ones((2, 2), dtype=np.int64), 1) == np.inf


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), steps=st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(lambda s: sum(s) > 0))
def test_an_exact_mix_is_found_exactly(seed, steps):
    expected = per_task(make_profiles(seed))
    grid = largest_remainder(np.array(steps, dtype=float), 20)
    mix = {t: s / 20 for t, s in zip(expected, grid, strict=True) if s}
    counts = np.round(sum(share * 10_000 * expected[t] for t, share in mix.items())).astype(np.int64)
    found = explain(counts, expected)
    assert found.shares == pytest.approx(mix)
    assert found.residual < 0.01


def test_shares_are_shares_of_tasks_even_when_tasks_differ_in_length():
    short, long = per_task(make_profiles(1))["facts"], 5 * per_task(make_profiles(2))["pick"]
    counts = np.round(100 * short + 100 * long).astype(np.int64)
    assert explain(counts, {"short": short, "long": long}).shares == {"short": 0.5, "long": 0.5}


def test_frequencies_as_profiles_give_shares_of_tokens():
    expected = per_task(make_profiles(4))
    profiles = {t: normalised(p) for t, p in expected.items()}
    counts = np.round(1000 * profiles["facts"] + 3000 * profiles["pick"]).astype(np.int64)
    counts[1] *= 7
    assert explain(counts, profiles).shares == {"facts": 0.25, "pick": 0.75}


def test_a_drawn_window_of_forty_tasks_is_explained_within_a_grid_step_of_what_was_drawn():
    rng = np.random.default_rng(5)
    expected = per_task(make_profiles(7, num_layers=12, num_experts=32))
    for _ in range(30):
        counts = draw_counts(rng, expected, {"facts": 1.0, "pick": 0.0}, 20) + draw_counts(rng, expected, {"pick": 1.0}, 20)
        assert distance(explain(counts, expected).shares, {"facts": 0.5, "pick": 0.5}) <= 0.05 + 1e-9


def test_what_no_mix_explains_is_left_as_residual():
    only_first = {"a": np.array([[10.0, 0, 0, 0]]), "b": np.array([[0, 10.0, 0, 0]])}
    mix = explain(np.array([[500, 0, 500, 0]]), only_first)
    assert mix.shares == {"a": 1.0}
    assert mix.residual == pytest.approx(0.5)


def test_counts_that_match_no_profile_give_the_even_mix_with_everything_unexplained():
    mix = explain(np.array([[0, 0, 9]]), {"a": np.array([[5.0, 0, 0]]), "b": np.array([[0, 5.0, 0]])})
    assert mix.shares == {"a": 0.5, "b": 0.5}
    assert mix.residual == pytest.approx(1.0)


def test_profiles_that_are_missing_or_of_another_shape_are_refused():
    with pytest.raises(MixError, match="profiles are empty"):
        explain(np.ones((1, 2), dtype=np.int64), {})
    with pytest.raises(CountsError, match="different models"):
        explain(np.ones((1, 2), dtype=np.int64), {"a": np.ones((2, 2))})


@settings(max_examples=100, deadline=None)
@given(weights=st.lists(st.floats(0, 1e6), min_size=1, max_size=9), steps=st.integers(1, 64))
def test_snapped_shares_sum_exactly_and_lie_within_a_step(weights, steps):
    values = np.array(weights)
    snapped = largest_remainder(values, steps)
    assert snapped.sum() == steps
    if values.sum() > 0:
        assert np.all(np.abs(snapped - values / values.sum() * steps) < 1 + 1e-6)
