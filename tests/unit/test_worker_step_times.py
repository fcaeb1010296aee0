"""The fit of the service model: it recovers lines, follows change, and stays sane on one point or with outliers."""

from __future__ import annotations

import numpy as np
import pytest

from services.worker.step_times import LineFit, StepTimesFit


def test_noisy_samples_of_a_line_give_the_line():
    rng = np.random.default_rng(0)
    fit = LineFit()
    for x in rng.integers(1, 9, size=2000):
        fit.observe(float(x), 0.004 + 0.001 * x + rng.normal(0, 0.0002))
    base, slope = fit.line()
    assert base == pytest.approx(0.004, rel=0.1)
    assert slope == pytest.approx(0.001, rel=0.1)


def test_a_single_size_ever_seen_puts_all_into_the_base():
    fit = LineFit()
    for _ in range(50):
        fit.observe(1, 0.02)
    assert fit.line() == pytest.approx((0.02, 0.0))


def test_nothing_seen_is_zero():
    assert LineFit().line() == (0.0, 0.0)


def test_warm_up_gives_the_slope_until_batches_differ():
    fit = LineFit()
    fit.anchor(1, 0.010)
    fit.anchor(4, 0.016)
    assert fit.line() == pytest.approx((0.008, 0.002))


def test_neither_part_is_ever_below_zero():
    falling, steep = LineFit(), LineFit()
    for x, y in ((1, 0.03), (2, 0.02), (3, 0.01)):
        falling.anchor(x, y)
    for x, y in ((10, 0.001), (20, 0.1)):
        steep.anchor(x, y)
    assert falling.line() == pytest.approx((0.02, 0.0))
    assert steep.line()[0] == 0.0
    assert steep.line()[1] > 0


def test_an_outlier_enters_clipped():
    fit = LineFit()
    for _ in range(100):
        fit.observe(1, 0.01)
    fit.observe(1, 10.0)
    assert sum(fit.line()) < 0.011


def test_the_fit_follows_a_device_that_became_slower():
    fit = StepTimesFit()
    for x in (1, 2, 3, 4) * 100:
        fit.step.observe(x, 0.01 + 0.001 * x)
    for x in (1, 2, 3, 4) * 500:
        fit.step.observe(x, 0.02 + 0.002 * x)
    assert fit.value().step_base_s == pytest.approx(0.02, rel=0.05)
    assert fit.value().step_row_s == pytest.approx(0.002, rel=0.05)


def test_what_is_measured_again_outweighs_a_warm_up_that_was_ten_times_too_slow_after_a_few_rounds():
    fit = LineFit()
    for x in (1, 4):
        fit.anchor(x, 10 * (0.004 + 0.001 * x))
    for _ in range(6):
        fit.renew([(x, 0.004 + 0.001 * x) for x in (1.0, 4.0)])
    base, slope = fit.line()
    assert base + slope == pytest.approx(0.005, rel=0.2)


def test_measuring_again_forgets_tasks_of_a_busier_time():
    fit = LineFit()
    fit.anchor(1, 0.01)
    for _ in range(500):
        fit.observe(1, 0.03)
    for _ in range(12):
        fit.renew([(1.0, 0.01)])
    assert sum(fit.line()) == pytest.approx(0.01, rel=0.1)
