"""Plans: exact sizes, canonical ids, additive statistics, M-SMoE's groups and weights, and little change against a present plan."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.core.merging.errors import CountsError, MixError, OptionError
from services.core.merging.groupings import grouping
from services.core.merging.groupings.router_logits import cosine
from services.core.merging.plan import coefficients, make_plan, mixed_statistics
from services.core.merging.present import changed_groups
from services.core.merging.values import BaseProfiles, LayerStatistics
from tests.unit.merging_builders import TASK_TYPES, make_budget, make_profiles, per_task

MIX = {"facts": 0.75, "pick": 0.25}
NO_BONUS = np.zeros((4, 4))


def group_sets(plan):
    return [{frozenset(g) for g in layer.groups} for layer in plan.layers]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), num_kept=st.integers(4, 32), share=st.integers(0, 20))
def test_every_plan_partitions_the_experts_and_its_coefficients_sum_to_one(seed, num_kept, share):
    profiles = make_profiles(seed)
    plan = make_plan(profiles, {"facts": share / 20, "pick": 1 - share / 20}, make_budget(profiles, num_kept))
    for layer in plan.layers:
        assert sorted(e for group in layer.groups for e in group) == list(range(8))
        assert [group[0] for group in layer.groups] == sorted(group[0] for group in layer.groups)
        assert len(layer.index_map) == 8
        for weights, group in zip(layer.coefficients, layer.groups, strict=True):
            assert len(weights) == len(group)
            assert sum(weights) == pytest.approx(1.0, abs=1e-12)


def test_coefficients_follow_frequencies_on_a_grid_of_64ths():
    assert coefficients(np.array([0.6, 0.3, 0.1])) == (39 / 64, 19 / 64, 6 / 64)
    assert sum(coefficients(np.array([0.123, 0.456, 0.001]))) == 1.0


def test_a_group_that_was_never_used_is_averaged_not_zeroed():
    assert coefficients(np.zeros(4)) == (0.25,) * 4
    assert sum(coefficients(np.zeros(3))) == pytest.approx(1.0)


def test_a_budget_that_holds_everything_gives_the_identity_whatever_the_mix():
    profiles = make_profiles()
    plans = [make_plan(profiles, {t: 1.0}, make_budget(profiles, 99), recovery_steps=50) for t in TASK_TYPES]
    assert len({plan.plan_id for plan in plans}) == 1
    assert all(layer.index_map == tuple(range(8)) for layer in plans[0].layers)
    assert all(weights == (1.0,) for layer in plans[0].layers for weights in layer.coefficients)
    assert plans[0].recovery_steps == 0


def test_equal_requests_give_equal_ids_and_another_mix_another_id():
    profiles = make_profiles()
    budget = make_budget(profiles, 12)
    first = make_plan(profiles, {"pick": 0.25, "facts": 0.75}, budget)
    assert first.plan_id == make_plan(profiles, {**MIX, "pronoun": 0.0}, budget).plan_id
    assert first.plan_id != make_plan(profiles, {"pronoun": 1.0}, budget).plan_id


def test_statistics_of_a_mix_are_the_weighted_sum_of_its_task_types():
    profiles = make_profiles()
    expected = per_task(profiles)
    mixed = mixed_statistics(profiles, MIX)
    assert np.allclose(np.stack([s.counts for s in mixed]), 0.75 * expected["facts"] + 0.25 * expected["pick"])
    grams = [profiles.statistics[t][2].gram for t in ("facts", "pick")]
    assert np.allclose(mixed[2].gram, 0.75 * grams[0] + 0.25 * grams[1])


def test_the_cosine_of_a_mix_is_that_of_the_tokens_put_together():
    rng = np.random.default_rng(3)
    one, two = rng.normal(size=(40, 6)), rng.normal(size=(40, 6)) + 1
    together = np.concatenate([one, two])
    norms = np.linalg.norm(together, axis=0)
    assert np.allclose(cosine(one.T @ one + two.T @ two), together.T @ together / np.outer(norms, norms))


def test_the_most_used_experts_dominate_and_the_others_join_the_most_similar():
    columns = np.array([[1, 0], [0, 1], [0.9, 0.1], [0.2, 0.8]], dtype=float)
    statistics = LayerStatistics(np.array([10, 8, 1, 1.0]), columns @ columns.T)
    assert grouping("router-logits")(statistics.counts, statistics, 2, NO_BONUS) == ((0, 2), (1, 3))


def test_equal_similarity_goes_to_the_more_used_dominant_and_equal_use_to_the_lower_id():
    statistics = LayerStatistics(np.array([1, 5, 5, 1.0]), np.ones((4, 4)))
    assert grouping("router-logits")(statistics.counts, statistics, 2, NO_BONUS) == ((1, 0, 3), (2,))


def test_an_expert_without_logits_joins_without_breaking_anything():
    gram = np.zeros((4, 4))
    gram[:3, :3] = np.eye(3)
    statistics = LayerStatistics(np.array([3, 2, 1, 0.0]), gram)
    assert grouping("router-logits")(statistics.counts, statistics, 2, NO_BONUS) == ((0, 2, 3), (1,))


def test_raw_frequencies_stand_in_for_the_mix_and_unseen_layers_fall_back_to_it():
    profiles = make_profiles()
    budget = make_budget(profiles, 12)
    raw = np.zeros((4, 8))
    raw[0, 5], raw[0, 6] = 0.7, 0.3
    plan = make_plan(profiles, {}, budget, frequencies=raw)
    kept_in_first = {group[0] for group in plan.layers[0].groups}
    assert {5, 6} & kept_in_first == set(ranked(raw[0])[: len(kept_in_first)]) & {5, 6}
    uniform = {t: 1 / 3 for t in TASK_TYPES}
    rest = make_plan(profiles, uniform, budget, allocation="uniform")
    assert group_sets(make_plan(profiles, {}, budget, frequencies=raw, allocation="uniform"))[1:] == group_sets(rest)[1:]


def ranked(row):
    return [int(e) for e in np.lexsort((np.arange(len(row)), -row))]


@pytest.mark.parametrize(
    ("mix", "words"),
    [({"facts": 0.5}, "sum to 0.5"), ({"sums": 1.0}, "'sums'"), ({}, "sum to 0"), ({"facts": 1.5, "pick": -0.5}, r"in \[0, 1\]")],
)
def test_shares_that_are_no_mix_are_named(mix, words):
    profiles = make_profiles()
    with pytest.raises(MixError, match=words):
        make_plan(profiles, mix, make_budget(profiles, 12))


def test_frequencies_and_budgets_of_another_model_are_refused():
    profiles = make_profiles()
    with pytest.raises(CountsError, match="raw_frequencies"):
        make_plan(profiles, MIX, make_budget(profiles, 12), frequencies=np.ones((2, 8)))
    with pytest.raises(CountsError, match="budget has 3 layers"):
        make_plan(profiles, MIX, make_budget(make_profiles(num_layers=3), 12))
    with pytest.raises(OptionError, match="grouping 'kmeans'"):
        make_plan(profiles, MIX, make_budget(profiles, 12), grouping="kmeans")


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), num_kept=st.integers(4, 28))
def test_planning_against_the_very_same_plan_changes_nothing(seed, num_kept):
    profiles = make_profiles(seed)
    budget = make_budget(profiles, num_kept)
    plan = make_plan(profiles, MIX, budget)
    assert make_plan(profiles, MIX, budget, present=plan) == plan


def test_a_present_plan_keeps_groups_when_the_gain_is_small_and_the_size_stays_exact():
    changed_fresh = changed_kept = 0
    for seed in range(30):
        profiles = make_profiles(seed, num_experts=16, num_layers=6, concentration=0.5)
        budget = make_budget(profiles, 30)
        present = make_plan(profiles, MIX, budget)
        nudged = {"facts": 0.7, "pick": 0.3}
        kept = make_plan(profiles, nudged, budget, present=present)
        assert kept.experts_kept == 30
        changed_fresh += len(changed_groups(make_plan(profiles, nudged, budget), present))
        changed_kept += len(changed_groups(kept, present))
    assert changed_kept < 0.5 * changed_fresh


def test_a_present_plan_does_not_stop_a_change_that_gains_much():
    profiles = make_profiles(concentration=0.1)
    budget = make_budget(profiles, 10)
    present = make_plan(profiles, {"facts": 1.0}, budget)
    fresh = make_plan(profiles, {"pronoun": 1.0}, budget)
    kept = make_plan(profiles, {"pronoun": 1.0}, budget, present=present)
    tops = [int(np.argmax(layer.counts)) for layer in profiles.statistics["pronoun"]]
    assert all(top in {group[0] for group in layer.groups} for top, layer in zip(tops, kept.layers, strict=True))
    assert len(changed_groups(kept, present)) <= len(changed_groups(fresh, present))


def test_a_present_plan_of_another_base_is_refused():
    profiles = make_profiles()
    budget = make_budget(profiles, 12)
    other = BaseProfiles("base-2", profiles.task_types, profiles.statistics)
    with pytest.raises(CountsError, match="base model base-2"):
        make_plan(profiles, MIX, budget, present=make_plan(other, MIX, budget))
