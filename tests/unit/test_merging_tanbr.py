"""Tanbr's tree, bandit and trigger, and the clairvoyant anchor: on traffic whose best weights are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from services.core.merging.mix import expected
from services.core.merging.neural_bandit import NeuralBandit
from services.core.merging.simplex_tree import leaf_centres
from services.core.merging.triggers import Deployed, TriggerState, trigger
from services.core.merging.values import normalised
from services.core.merging.windows import CountWindow
from tests.unit.merging_builders import draw_counts, make_profiles, make_report, per_task

PROFILES = per_task(make_profiles(3, num_layers=6, num_experts=16, tokens_per_task=40))


def quality_of(mix):
    """A merged model knows a task type fully from half its weight on."""
    return {t: 0.2 + 0.7 * min(1.0, 2.0 * mix.get(t, 0.0)) for t in PROFILES}


def deployed(mix, version="v", *, quality=True):
    return Deployed(version, normalised(expected(PROFILES, mix)), PROFILES, mix, quality_of(mix) if quality else {})


def run(form, traffic, *, quality=True, slots=20):
    """Quality of what is served, slot by slot, and the number of updates; a step of the traffic per entry of `traffic`."""
    rng, tanbr = np.random.default_rng(0), trigger("tanbr", form=form)
    state, served, updates = TriggerState(deployed({"facts": 1.0}, quality=quality), 60.0, 0.0), [], 0
    for step, mix in enumerate(traffic):
        for slot in range(slots):
            window = CountWindow((6, 16)).added(make_report(draw_counts(rng, PROFILES, mix, 60), num_tasks=60))
            state, decision = tanbr.check(state, window, 60.0 * (slots * step + slot))
            if decision.mix is not None:
                updates += 1
                state = replace(state, deployed=deployed(dict(decision.mix.shares), f"v{updates}", quality=quality))
            served.append(sum(share * quality_of(state.deployed.mix)[t] for t, share in mix.items()))
    return served, updates


def test_the_tree_begins_with_choices_spread_over_all_mixes():
    centres = leaf_centres(3, [], 2)
    assert len(centres) >= 6
    assert all(centre.sum() == pytest.approx(1.0) and (centre >= 0.0).all() for centre in centres)
    assert np.mean(centres, axis=0) == pytest.approx(np.full(3, 1 / 3))


def test_leaves_are_finer_where_weights_were_tried():
    tried = [np.array([0.8, 0.1, 0.1])] * 12
    near = [np.abs(centre - tried[0]).sum() for centre in leaf_centres(3, tried, 2)]
    assert len(near) > len(leaf_centres(3, [], 2))
    assert min(near) < 0.5 * min(np.abs(centre - tried[0]).sum() for centre in leaf_centres(3, [], 2))


def test_a_single_task_type_leaves_one_choice():
    assert [centre.tolist() for centre in leaf_centres(1, [np.ones(1)] * 5, 2)] == [[1.0]]


def test_the_bandit_learns_a_curved_reward_and_is_least_sure_where_nothing_was_tried():
    points = np.linspace(0.0, 0.6, 40)[:, None]
    bandit = NeuralBandit(points, 0.8 - (points[:, 0] - 0.3) ** 2 * 4.0)
    asked = np.array([[0.0], [0.3], [1.0]])
    low, high, _ = bandit.predicted(asked)
    assert high > low + 0.1
    spread = bandit.spread(asked)
    assert spread[2] > 2.0 * spread[1]


def test_equal_rows_give_equal_answers():
    rng = np.random.default_rng(0)
    points, rewards = rng.random((20, 4)), rng.random(20)
    first, second = (NeuralBandit(points, rewards).predicted(points) for _ in range(2))
    assert (first == second).all()


@pytest.mark.parametrize(("form", "most_updates"), [("paper", 30), ("strong", 8)])
def test_tanbr_finds_good_weights_and_finds_others_when_the_traffic_changes(form, most_updates):
    served, updates = run(form, [{"pronoun": 0.8, "pick": 0.2}, {"facts": 0.5, "pick": 0.5}])
    assert np.mean(served[10:20]) > 0.7
    assert np.mean(served[30:]) > 0.5
    assert 2 <= updates <= most_updates


def test_the_strong_form_serves_as_well_as_the_papers_with_less_than_half_of_the_updates():
    traffic = [{"pronoun": 0.8, "pick": 0.2}, {"facts": 0.5, "pick": 0.5}]
    paper, strong = (run(form, traffic) for form in ("paper", "strong"))
    assert strong[1] < 0.5 * paper[1]
    assert np.mean(strong[0]) > np.mean(paper[0]) - 0.05


def test_without_known_quality_the_strong_form_is_the_papers():
    traffic = [{"pronoun": 0.8, "pick": 0.2}]
    assert run("strong", traffic, quality=False) == run("paper", traffic, quality=False)


def test_what_is_remembered_is_bounded():
    tanbr = trigger("tanbr", max_rows=10)
    state = TriggerState(deployed({"facts": 1.0}), 60.0, 0.0)
    for n in range(30):
        counts = draw_counts(np.random.default_rng(n), PROFILES, {"pick": 1.0}, 60)
        state, _ = tanbr.check(state, CountWindow((6, 16)).added(make_report(counts, num_tasks=60)), 60.0 * n)
    assert len(state.memory) == 10


def test_the_clairvoyant_updates_once_for_each_change_from_what_came_after_it():
    clairvoyant = trigger("clairvoyant", changes_at_s=(0.0, 100.0), settle_s=5.0)
    state, window, actions = TriggerState(deployed({"facts": 1.0}), 1.0, 0.0), CountWindow((6, 16)), []
    rng = np.random.default_rng(0)
    for now_s in range(1, 140):
        mix = {"pick": 1.0} if now_s <= 100 else {"pronoun": 1.0}
        report = make_report(draw_counts(rng, PROFILES, mix, 60), num_tasks=60)
        window = window.added(replace(report, start_at_s=now_s - 1.0, end_at_s=float(now_s)))
        state, decision = clairvoyant.check(state, window, float(now_s))
        window = decision.carried
        if decision.action == "update":
            actions.append((now_s, decision.evidence.num_tasks))
            assert all(report.start_at_s >= 100.0 for report in decision.evidence.reports) or now_s < 100
    assert actions == [(5, 300), (105, 300)]
    assert state.memory == ((0.0,), (100.0,))
