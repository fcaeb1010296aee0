"""Byte budgets are exact: never above, and within one expert, whatever the allocation and the sizes of experts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.merging.allocations import allocation, names
from services.core.merging.budget import filled, full_bytes, plan_bytes, smallest_bytes
from services.core.merging.errors import BudgetError, OptionError
from services.core.merging.plan import make_plan
from services.core.merging.values import Budget, normalised
from tests.unit.merging_builders import make_budget, make_profiles


def dirichlet(seed: int, num_layers: int, num_experts: int, concentration: float = 0.3):
    return np.random.default_rng(seed).dirichlet(np.full(num_experts, concentration), size=num_layers)


@pytest.mark.parametrize("name", names())
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_filled_budget_is_never_exceeded_and_lacks_less_than_any_missing_expert(name, data):
    num_layers, num_experts = data.draw(st.integers(1, 6)), data.draw(st.integers(2, 12))
    floor = data.draw(st.integers(1, 2))
    each = tuple(data.draw(st.lists(st.integers(1, 50), min_size=num_layers, max_size=num_layers)))
    rest, reserve = data.draw(st.integers(0, 100)), data.draw(st.integers(0, 100))
    room = data.draw(st.integers(0, num_experts * sum(each) + 60))
    budget = Budget(rest + reserve + floor * sum(each) + room, rest, each, reserve)
    frequencies = dirichlet(data.draw(st.integers(0, 9999)), num_layers, num_experts)
    kept = filled(budget, allocation(name).slot_order(frequencies, floor), floor, num_experts)
    used = rest + reserve + sum(k * e for k, e in zip(kept, each, strict=True))
    assert used <= budget.bytes
    assert all(floor <= k <= num_experts for k in kept)
    missing = [e for k, e in zip(kept, each, strict=True) if k < num_experts]
    assert not missing or budget.bytes - used < min(missing)


@pytest.mark.parametrize("name", names())
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), num_kept=st.integers(4, 40), spare=st.integers(0, 999))
def test_with_equal_experts_the_number_kept_is_exactly_what_the_bytes_hold(name, seed, num_kept, spare):
    profiles = make_profiles(seed)
    budget = make_budget(profiles, num_kept, spare_bytes=spare)
    plan = make_plan(profiles, {"facts": 0.5, "pick": 0.5}, budget, allocation=name)
    assert plan.experts_kept == min(num_kept, 4 * 8)
    assert plan_bytes(plan, budget) == 5_000 + plan.experts_kept * 1_000


@pytest.mark.parametrize("name", names())
def test_an_allocation_names_every_layer_as_often_as_it_has_experts_to_give(name):
    order = allocation(name).slot_order(dirichlet(1, 3, 7), 2)
    assert sorted(order) == sorted([0, 1, 2] * 5)


def test_mc_smoe_gives_seats_to_the_globally_most_used_experts():
    frequencies = np.array([[0.9, 0.1, 0.0, 0.0], [0.3, 0.3, 0.2, 0.2]])
    budget = Budget(4, 0, (1, 1))
    assert filled(budget, allocation("mc-smoe").slot_order(frequencies, 1), 1, 4) == (1, 3)


def test_mc_smoe_spreads_seats_that_nobody_needs_over_the_layers():
    frequencies = normalised(np.array([[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]))
    assert filled(Budget(6, 0, (1, 1, 1)), allocation("mc-smoe").slot_order(frequencies, 1), 1, 4) == (2, 2, 2)


def test_ties_do_not_shrink_the_model_below_its_target():
    uniform = np.full((3, 8), 1 / 8)
    for kept in range(3, 25):
        assert sum(filled(Budget(kept, 0, (1, 1, 1)), allocation("mc-smoe").slot_order(uniform, 1), 1, 8)) == kept


def test_uniform_gives_the_remainder_to_the_layers_of_highest_entropy():
    frequencies = np.array([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.7, 0.3, 0, 0]])
    assert filled(Budget(8, 0, (1, 1, 1)), allocation("uniform").slot_order(frequencies, 1), 1, 4) == (2, 3, 3)


def test_a_budget_too_small_names_the_smallest_that_works():
    profiles = make_profiles()
    budget = make_budget(profiles, 3)
    with pytest.raises(BudgetError, match="smallest that works is 9000") as caught:
        make_plan(profiles, {"facts": 1.0}, budget)
    assert caught.value.smallest_bytes == smallest_bytes(budget) == 9_000
    works = Budget(caught.value.smallest_bytes, budget.non_expert_bytes, budget.expert_bytes)
    assert make_plan(profiles, {"facts": 1.0}, works).experts_kept == 4


def test_the_reserve_is_kept_free():
    profiles = make_profiles()
    budget = Budget(5_000 + 10_999 + 2_000, 5_000, (1_000,) * 4, reserve_bytes=2_000)
    assert make_plan(profiles, {"facts": 1.0}, budget).experts_kept == 10
    assert full_bytes(budget, 8) == 5_000 + 2_000 + 32_000


def test_switch_base_32_keeps_what_its_published_sizes_say():
    """fp32, 166.5 M parameters outside experts, 4,718,592 in each: 1.5, 2, 3, 4 and 6 GB hold 44, 70, 123, 176 and 282 experts."""
    frequencies = dirichlet(0, 12, 32)
    for gigabytes, experts in ((1.5, 44), (2, 70), (3, 123), (4, 176), (6, 282)):
        budget = Budget(int(gigabytes * 1e9), 4 * 166_500_000, (4 * 4_718_592,) * 12)
        assert sum(filled(budget, allocation("mc-smoe").slot_order(frequencies, 1), 1, 32)) == experts


def test_an_unknown_allocation_says_which_there_are():
    with pytest.raises(OptionError, match=r"did you mean uniform?"):
        allocation("unifrom")
