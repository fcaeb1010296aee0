"""Plans of fitted experts: never above the room, all of it used, bytes where a mix needs them."""

from __future__ import annotations

import numpy as np
import pytest

from services.core.merging.errors import BudgetError, MixError
from services.core.merging.fitted import HALF_KEPT_NATS, FormErrors, fitted_plan, kept_share
from services.core.merging.plan import make_plan
from services.core.merging.recipes import FITTED
from services.core.merging.values import DROPPED, ExpertForm
from tests.unit.merging_builders import make_budget, make_profiles

FORMS = (DROPPED, ExpertForm(1, 8), ExpertForm(2, 8), ExpertForm(4, 16))
SIZES = (0, 10, 20, 60)
TYPES = ("facts", "pick", "talk")


def plan_room_bytes(table, plan):
    """What the experts of a plan take."""
    place = {form: number for number, form in enumerate(table.forms)}
    return sum(int(table.sizes_bytes[n, place[form]]) for n, layer in enumerate(plan.layers) for form in layer.forms)


def make_table(seed: int = 0, *, num_layers: int = 3, num_experts: int = 6, apart: bool = False) -> FormErrors:
    """Errors that fall as forms grow. `apart`: every task type has experts of its own."""
    rng = np.random.default_rng(seed)
    each = rng.exponential(size=(len(TYPES), num_layers, num_experts, 1))
    if apart:
        owner = np.arange(num_experts) % len(TYPES)
        each = each * (owner == np.arange(len(TYPES))[:, None])[:, None, :, None]
    errors = each * np.array([1.0, 0.3, 0.1, 0.01])
    sent = np.repeat(2 * errors[..., :1], num_experts, axis=3)
    return FormErrors("base", TYPES, FORMS, errors, sent, np.tile(SIZES, (num_layers, 1)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("room_bytes", [0, 9, 10, 95, 300, 700, 5000])
def test_a_plan_never_takes_more_than_its_room_and_leaves_less_than_any_better_form_takes(seed, room_bytes):
    table = make_table(seed)
    plan = fitted_plan(table, {"facts": 0.6, "pick": 0.4}, room_bytes)
    left = room_bytes - plan_room_bytes(table, plan)
    assert left >= 0
    for layer in plan.layers:
        assert sorted(expert for group in layer.groups for expert in group) == list(range(6))
        assert len(layer.forms) == len(layer.groups) == len(layer.coefficients)
        for form in layer.forms:
            larger = [size - SIZES[FORMS.index(form)] for size in SIZES if size > SIZES[FORMS.index(form)]]
            assert not larger or left < min(larger)


def test_experts_that_nothing_answers_are_the_last_group_and_are_not_kept():
    plan = fitted_plan(make_table(), {"facts": 1.0}, 50)
    assert plan.method == FITTED
    dropped = [layer for layer in plan.layers if DROPPED in layer.forms]
    assert dropped
    for layer in dropped:
        assert layer.forms.index(DROPPED) == len(layer.forms) - 1 == layer.num_kept
        assert all(layer.index_map[expert] == layer.num_kept for expert in layer.groups[-1])
    assert plan.experts_kept == sum(layer.num_kept for layer in plan.layers) < 18


def test_groups_come_in_the_order_of_their_forms():
    for layer in fitted_plan(make_table(3), {"facts": 0.5, "talk": 0.5}, 400).layers:
        held = [(form.bits, form.rank, form.units) for form in layer.forms if form != DROPPED]
        assert held == sorted(held)


def test_bytes_go_to_the_experts_that_the_mix_uses():
    table = make_table(1, apart=True)
    for number, task_type in enumerate(TYPES):
        plan = fitted_plan(table, {task_type: 1.0}, 150)
        held = {layer.groups[n][0] for layer in plan.layers for n, form in enumerate(layer.forms) if form.bits > 1}
        assert held
        assert all(expert % len(TYPES) == number for expert in held)


def test_where_room_is_short_one_task_type_is_kept_whole_instead_of_all_of_them_in_part():
    """Sums of errors alone would give each of three equal types a third of the bytes, and leave all of them wrong."""
    table = make_table(1, apart=True)
    errors = np.where(table.errors > 0, np.array([1.0, 0.6, 0.4, 0.0]) * 4.0, 0.0)
    plan = fitted_plan(FormErrors("base", TYPES, FORMS, errors, table.sent * 100, table.sizes_bytes), dict.fromkeys(TYPES, 1 / 3), 360)
    chosen = [(layer.groups[n][0] % len(TYPES), form) for layer in plan.layers for n, form in enumerate(layer.forms)]
    assert len({owner for owner, form in chosen if form == FORMS[3]}) == 1
    assert sum(form == FORMS[3] for _, form in chosen) == 6


def test_what_is_left_over_serves_task_types_that_the_mix_does_not_name():
    table = make_table(1, apart=True)
    plan = fitted_plan(table, {"facts": 1.0}, 2 * 3 * 60 + 100)
    others = {layer.groups[n][0] % len(TYPES) for layer in plan.layers for n, form in enumerate(layer.forms) if form != DROPPED}
    assert others - {0}


def test_a_dropped_expert_is_answered_by_another_only_where_that_is_better_than_nothing():
    table = make_table(2)
    good = np.array(table.sent)
    good[:, :, :, 0] = 1e-6
    answered = fitted_plan(FormErrors("base", TYPES, FORMS, table.errors, good, table.sizes_bytes), {"facts": 1.0}, 120)
    for layer in answered.layers:
        hosts = {group[0]: group for group in layer.groups}
        if 0 in hosts and layer.forms[layer.index_map[0]] != DROPPED:
            assert DROPPED not in layer.forms
            assert layer.coefficients[layer.index_map[0]] == (1.0, *(0.0,) * (len(hosts[0]) - 1))
    alone = fitted_plan(table, {"facts": 1.0}, 120)
    assert all(len(group) == 1 for layer in alone.layers for group, form in zip(layer.groups, layer.forms, strict=True) if form != DROPPED)


def test_equal_requests_give_equal_plans_and_an_edge_keeps_forms_that_hardly_matter():
    table = make_table(5)
    first = fitted_plan(table, {"facts": 0.7, "pick": 0.3}, 300)
    assert fitted_plan(table, {"pick": 0.3, "facts": 0.7}, 300).plan_id == first.plan_id
    other = {"facts": 0.6, "pick": 0.4}

    def changed(plan):
        pairs = zip(plan.layers, first.layers, strict=True)
        return sum(set(zip(a.groups, a.forms, strict=True)) != set(zip(b.groups, b.forms, strict=True)) for a, b in pairs)

    assert changed(fitted_plan(table, other, 300, present=first)) <= changed(fitted_plan(table, other, 300))


def test_a_present_plan_of_another_kind_changes_nothing():
    table = make_table(5, num_layers=4, num_experts=8)
    profiles = make_profiles()
    merged = make_plan(profiles, {"facts": 1.0}, make_budget(profiles, 12))
    assert fitted_plan(table, {"facts": 1.0}, 300, present=merged) == fitted_plan(table, {"facts": 1.0}, 300)


def test_unknown_task_types_and_a_room_below_nothing_are_refused():
    with pytest.raises(MixError, match="nobody"):
        fitted_plan(make_table(), {"nobody": 1.0}, 100)
    with pytest.raises(BudgetError):
        fitted_plan(make_table(), {"facts": 1.0}, -1)


def test_answers_that_did_not_move_are_kept_and_half_of_those_that_moved_by_so_many_nats():
    assert kept_share(np.array([0.0, HALF_KEPT_NATS, 1e9])).tolist() == pytest.approx([1.0, 0.5, 0.0])
