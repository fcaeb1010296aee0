"""Tasks at an edge that no living broker publishes."""

from __future__ import annotations

from services.core.offload.unclaimed import unclaimed_work
from services.core.offload.values import Work


def test_tasks_of_brokers_that_publish_are_not_counted_twice():
    assert unclaimed_work({"me": 3, "alive": 2}, {"me", "alive"}, 10.0) == Work()


def test_what_a_dead_broker_left_counts_with_a_usual_answer_each():
    assert unclaimed_work({"me": 3, "alive": 2, "dead": 4}, {"me", "alive"}, 10.0) == Work(4, 0.0, 40.0)


def test_tasks_that_came_without_a_broker_are_nobodys_and_count():
    assert unclaimed_work({"": 2}, {"me"}, 8.0) == Work(2, 0.0, 16.0)


def test_an_idle_edge_has_none():
    assert unclaimed_work({}, (), 8.0) == Work()
