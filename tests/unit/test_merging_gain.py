"""What a new version is expected to gain."""

from __future__ import annotations

import pytest

from services.core.merging.gain import expected_gain


def test_a_gain_is_the_change_of_mean_quality_over_the_mix():
    assert expected_gain({"a": 0.75, "b": 0.25}, {"a": 0.2, "b": 1.0}, {"a": 0.6, "b": 0.0}) == pytest.approx(0.75 * 0.4 - 0.25)


def test_task_types_of_unknown_quality_do_not_count_and_without_any_there_is_no_gain_to_tell():
    assert expected_gain({"a": 0.5, "b": 0.5}, {"a": 0.0}, {"a": 1.0, "b": 1.0}) == pytest.approx(0.5)
    assert expected_gain({"a": 1.0}, {}, {"a": 1.0}) is None
