"""What an edge starts from while nothing is known of its traffic."""

from __future__ import annotations

import pytest

from services.core.merging.mix import FIRST_LEAD, first_mix

TASK_TYPES = ("sentence", "facts", "question")


def test_edges_one_after_the_other_are_led_by_task_types_of_their_own():
    mixes = [first_mix(TASK_TYPES, number) for number in range(4)]
    assert [max(mix, key=mix.__getitem__) for mix in mixes] == ["facts", "question", "sentence", "facts"]
    assert all(sum(mix.values()) == pytest.approx(1) for mix in mixes)
    assert all(max(mix.values()) == FIRST_LEAD for mix in mixes)


def test_the_order_of_the_task_types_does_not_matter():
    assert first_mix(TASK_TYPES, 1) == first_mix(sorted(TASK_TYPES), 1)


def test_a_single_task_type_takes_all_and_none_leaves_the_mix_open():
    assert first_mix(("facts",), 3) == {"facts": 1.0}
    assert first_mix((), 3) == {}
