"""Costs of a run, against sums done by hand."""

from __future__ import annotations

from typing import Any

import pytest

from services.core.workload.costs import FinishedTask, positive_cost, process_time_s, table_cost, total_quality, weighted_cost


def make_finished(task_id="t1", **overrides):
    values: dict[str, Any] = {
        "arrived_at_s": 10.0,
        "completed_at_s": 12.0,
        "alpha": 0.5,
        "expected_quality": 0.8,
        "realised_quality": 1.0,
        "edge_id": "e1",
        "task_type": "qa",
    }
    return FinishedTask(task_id, **(values | overrides))


RUN = (make_finished(), make_finished("t2", arrived_at_s=11.0, completed_at_s=15.0, alpha=1.0, expected_quality=0.5, realised_quality=0.0))


def test_weighted_cost_is_equation_one_from_the_first_arrival():
    assert weighted_cost(RUN, quality_scale=2.0) == pytest.approx((15.0 - 10.0) - (0.5 * 2 * 1.0 + 1.0 * 2 * 0.0))
    assert weighted_cost(RUN, quality_scale=2.0, kind="expected") == pytest.approx(5.0 - (0.5 * 2 * 0.8 + 1.0 * 2 * 0.5))


def test_positive_cost_is_a_mean_and_never_negative():
    assert positive_cost(RUN, quality_scale=2.0) == pytest.approx(((2.0 + 0.0) + (4.0 + 2.0)) / 2)
    assert positive_cost((), quality_scale=2.0) == 0.0


def test_process_time_counts_switch_downtime():
    assert process_time_s(RUN, downtimes_s=(18.0, 18.0)) == pytest.approx(2.0 + 4.0 + 36.0)


def test_the_tables_cost_is_process_time_less_a_constant_share_of_quality():
    assert table_cost(RUN, downtimes_s=(18.0,)) == pytest.approx(24.0 - 0.05 * 1.0)


def test_total_quality_is_reported_expected_and_realised():
    totals = total_quality(RUN)
    assert (totals.expected, totals.realised) == pytest.approx((1.3, 1.0))
