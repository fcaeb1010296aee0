"""Which form each expert takes in a given room."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from services.core.merging.errors import BudgetError
from services.core.merging.forms import chosen_forms


def table(num_experts: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = np.tile([0, 10, 20, 40], (num_experts, 1))
    falling = np.sort(rng.exponential(size=(num_experts, 4)) * rng.exponential(size=(num_experts, 1)), axis=1)[:, ::-1]
    return falling.copy(), sizes


def spent(sizes: np.ndarray, chosen: np.ndarray) -> int:
    return int(sizes[np.arange(len(chosen)), chosen].sum())


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("room_bytes", [0, 35, 80, 200])
def test_the_choice_fits_and_is_at_most_one_step_from_the_best(seed, room_bytes):
    errors, sizes = table(5, seed)
    chosen = chosen_forms(errors, sizes, room_bytes)
    assert spent(sizes, chosen) <= room_bytes
    best = min(
        sum(errors[i, form] for i, form in enumerate(forms))
        for forms in itertools.product(range(4), repeat=5)
        if sum(sizes[i, form] for i, form in enumerate(forms)) <= room_bytes
    )
    assert errors[np.arange(5), chosen].sum() <= best + max(errors[:, 0] - errors[:, -1]) + 1e-9


def test_bytes_go_where_they_save_most_error():
    errors = np.array([[9.0, 1.0, 0.9], [5.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    sizes = np.tile([0, 10, 20], (3, 1))
    assert chosen_forms(errors, sizes, 10).tolist() == [1, 0, 0]
    assert chosen_forms(errors, sizes, 30).tolist() == [1, 2, 0]
    assert chosen_forms(errors, sizes, 1000).tolist() == [2, 2, 0]


def test_more_room_never_costs_error_where_steps_are_equal():
    errors, _ = table(6, 11)
    sizes = np.tile([0, 10, 20, 30], (6, 1))
    totals = [errors[np.arange(6), chosen_forms(errors, sizes, room)].sum() for room in range(0, 190, 10)]
    assert all(after <= before for before, after in itertools.pairwise(totals))


def test_a_room_below_the_smallest_forms_is_refused_with_what_they_take():
    with pytest.raises(BudgetError, match="30"):
        chosen_forms(np.ones((2, 2)), np.array([[10, 20], [20, 40]]), 29)
