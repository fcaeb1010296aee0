"""What the three published server systems hold and what it costs, against their papers' figures and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from services.core.runtimes import touched
from services.core.runtimes.expert_buffered import effect as buffered_effect
from services.core.runtimes.expert_buffered import num_misses, passes
from services.core.runtimes.mixed_precision import Sizes, by_usage, moved_bytes, num_16_bit, plan, preference
from services.core.runtimes.mixed_precision import effect as precision_effect
from services.core.runtimes.multi_model import ABSENT, consolidated, distances
from services.core.runtimes.multi_model import effect as multi_effect

SWITCH_BASE_32 = Sizes(num_experts=384, expert_16_bytes=9.437e6, expert_4_bytes=2.36e6, non_expert_bytes=0.333e9)
SMALL = Sizes(num_experts=8, expert_16_bytes=4.0, expert_4_bytes=1.0, non_expert_bytes=10.0)
PCIE = 12e9


@pytest.mark.parametrize(("memory_bytes", "expected"), [(1.5e9, 36), (2e9, 107), (3e9, 248), (4e9, 384), (1e9, 0)])
def test_the_experts_of_switch_base_32_that_stay_in_16_bits(memory_bytes, expected):
    assert num_16_bit(memory_bytes, SWITCH_BASE_32) == expected


def test_throughput_keeps_all_resident_where_it_can_and_offloads_4_bit_experts_where_it_cannot():
    roomy = plan(24.0, SMALL, "throughput", range(8))
    assert roomy.four_bit.sum() == 6
    assert roomy.resident.all()
    tight = plan(15.0, SMALL, "throughput", range(8))
    assert tight.four_bit.all()
    assert tight.resident.sum() == 4  # room for five, one of them for swapping


def test_quality_keeps_the_users_number_of_4_bit_experts_and_makes_them_resident_first():
    held = plan(24.0, SMALL, "quality", range(8), num_4_bit=3)
    assert held.four_bit.tolist() == [True] * 3 + [False] * 5
    assert held.resident.tolist() == [True] * 4 + [False] * 4  # one 16-bit expert fits beside the room for swapping
    assert plan(1e3, SMALL, "quality", range(8)).four_bit.sum() == 0


def test_a_plan_by_usage_spares_the_experts_that_are_used_most():
    counts = np.array([5.0, 1.0, 4.0, 9.0, 0.0, 3.0, 2.0, 8.0])
    by_chance = precision_effect(counts, plan(24.0, SMALL, "throughput", range(8)), SMALL, 1.0, 0.8)
    by_use = precision_effect(counts, plan(24.0, SMALL, "throughput", by_usage(counts)), SMALL, 1.0, 0.8)
    assert by_use.quality == pytest.approx(0.8 - 0.02 * 15 / 32)
    assert by_use.quality > by_chance.quality
    assert by_use.extra_s == by_chance.extra_s == 0.0


def test_a_reconfiguration_moves_only_what_changed():
    before = plan(24.0, SMALL, "throughput", range(8))
    assert moved_bytes(before, before, SMALL) == 0.0
    after = plan(27.0, SMALL, "throughput", range(8))
    assert moved_bytes(before, after, SMALL) == 4.0


def test_a_server_prefers_what_most_of_its_last_tasks_do():
    assert preference([0.9, 0.6, 0.1]) == "quality"
    assert preference([0.9, 0.1]) == "throughput"
    assert preference([]) == "throughput"


def test_a_miss_of_the_papers_expert_takes_about_28_milliseconds():
    sizes = Sizes(num_experts=1, expert_16_bytes=336e6, expert_4_bytes=84e6, non_expert_bytes=0.0)
    nothing = plan(0.0, sizes, "quality", [0])
    assert precision_effect(np.array([50.0]), nothing, sizes, PCIE, 1.0).extra_s == pytest.approx(0.0274, rel=0.05)


def test_last_in_first_out_comes_near_beladys_optimum_where_experts_run_in_order_and_lru_does_worst():
    accesses = list(range(6)) * 20
    lifo, lru, belady = (num_misses(accesses, 4, eviction) for eviction in ("lifo", "lru", "belady"))
    assert lru == len(accesses)
    assert belady <= lifo < 0.6 * lru
    assert lifo <= 1.3 * belady


@pytest.mark.parametrize("seed", range(6))
def test_no_eviction_beats_belady_and_a_buffer_for_all_misses_each_expert_once(seed):
    rng = np.random.default_rng(seed)
    accesses = passes(rng.gamma(0.5, 2.0, size=24), 40, rng)
    for room in (1, 4, 12):
        belady = num_misses(accesses, room, "belady")
        assert all(num_misses(accesses, room, eviction) >= belady for eviction in ("lifo", "lru"))
    assert {num_misses(accesses, 24, eviction) for eviction in ("lifo", "lru", "belady")} == {len(set(accesses))}
    assert num_misses(accesses, 0, "lifo") == len(accesses)


def test_a_buffered_model_pays_in_time_and_not_in_quality():
    counts = np.full(16, 2.0)
    small, large = (buffered_effect(counts, room, 9.4e6, PCIE, 0.8, "lifo") for room in (4, 16))
    assert small.quality == large.quality == 0.8
    assert small.extra_s > 5 * large.extra_s


def test_positions_where_variants_are_most_alike_are_shared_in_turn():
    base = np.zeros((5, 3))
    variants = [base, base + np.array([[0.3], [0.1], [0.5], [0.2], [0.4]])]
    by_position = distances(variants)
    assert by_position == pytest.approx(np.array([0.3, 0.1, 0.5, 0.2, 0.4]) * np.sqrt(3))
    assert consolidated(by_position, 2, 3).owners.tolist() == [0, 0, ABSENT, 1, ABSENT]


def test_a_task_of_another_variant_pays_the_swap_misses_and_foreign_experts():
    held = consolidated(np.array([1.0, 2.0, 3.0]), 2, 2)
    counts = np.array([10.0, 30.0, 1e-3])
    costs = {"expert_bytes": 9.4e6, "non_expert_bytes": 0.67e9, "bytes_per_s": PCIE, "quality": 0.8}
    same, other = (multi_effect(counts, held, wanted, 0, **costs) for wanted in (0, 1))
    assert other.extra_s - same.extra_s == pytest.approx(0.0558, rel=0.01)
    assert same.quality == pytest.approx(0.8 * (1 - 0.1 * 30 / 40.001))
    assert other.quality == pytest.approx(0.8 * (1 - 0.1 * 10 / 40.001))
    assert touched(counts)[2] == pytest.approx(1e-3, rel=1e-3)
