"""Triggers: Algorithm 2 in paper mode to the letter, the guards of product mode, and no false triggers on traffic that stays the same."""

from dataclasses import replace

import numpy as np
import pytest

from services.core.merging.errors import CountsError, OptionError
from services.core.merging.mix import distance
from services.core.merging.shift import activation_shift, noise_shift
from services.core.merging.triggers import Deployed, TriggerState, names, options, trigger
from services.core.merging.values import normalised
from services.core.merging.windows import MAX_REPORTS, CountWindow
from tests.unit.merging_builders import draw_counts, make_profiles, make_report, per_task

MIX = {"facts": 0.6, "pick": 0.4}
OTHER = {"pronoun": 1.0}
SMALL = per_task(make_profiles(3, num_layers=6, num_experts=16, tokens_per_task=40))


def make_state(expected=SMALL, mix=MIX, *, interval_s=20.0, suspected=False):
    reference = normalised(sum(share * expected[t] for t, share in mix.items()))
    return TriggerState(Deployed("v1", reference, expected, mix), interval_s, 0.0, suspected)


def make_window(rng, *mixes, num_tasks=20, expected=SMALL):
    window = CountWindow(next(iter(expected.values())).shape)
    for mix in mixes:
        window = window.added(make_report(draw_counts(rng, expected, mix, num_tasks), num_tasks=num_tasks))
    return window


def exact_window(mix, num_tasks=200, expected=SMALL):
    """Two equal reports without noise."""
    counts = np.round(num_tasks / 2 * sum(share * expected[t] for t, share in mix.items())).astype(np.int64)
    report = make_report(counts, num_tasks=num_tasks // 2)
    return CountWindow(counts.shape).added(report).added(report)


def test_triggers_are_found_by_the_names_of_their_files():
    assert {"clairvoyant", "jtom", "never", "periodic", "tanbr"} <= set(names())
    assert all(trigger(name).name == name for name in names())


def test_unknown_names_and_options_say_what_there_is():
    with pytest.raises(OptionError, match="did you mean periodic"):
        trigger("periodically")
    with pytest.raises(OptionError, match=r"no option 'delta'.*interval_s"):
        trigger("jtom", delta=3)
    with pytest.raises(OptionError, match="'paper' or 'product'"):
        trigger("jtom", mode="books")
    with pytest.raises(OptionError, match="threshold"):
        trigger("jtom", threshold=0.0)
    assert "min_tokens" in options("periodic")


def test_paper_mode_lengthens_the_interval_without_cap_while_nothing_changes():
    jtom, state = trigger("jtom", mode="paper"), make_state()
    for check in range(1, 30):
        state, decision = jtom.check(state, exact_window(MIX), now_s=100.0)
        assert (decision.action, decision.interval_s) == ("keep", 20 + 60 * check)
    assert state.due_at_s == 100.0 + 20 + 60 * 29


def test_product_mode_caps_the_interval_at_ten_times_the_initial_one():
    jtom, state = trigger("jtom"), make_state()
    for _ in range(30):
        state, decision = jtom.check(state, exact_window(MIX), 0.0)
    assert decision.interval_s == 200.0


@pytest.mark.parametrize(("interval_s", "after_s"), [(20.0, 1.0), (80.0, 20.0), (61.0, 1.0)])
def test_an_update_shortens_the_interval_down_to_one_slot(interval_s, after_s):
    state, decision = trigger("jtom", mode="paper").check(make_state(interval_s=interval_s), exact_window(OTHER), 5.0)
    assert (decision.action, decision.interval_s, state.due_at_s) == ("update", after_s, 5.0 + after_s)
    assert decision.carried.num_tasks == 0
    assert "reaches 0.2" in decision.reason


def test_too_few_tokens_skip_the_check_and_keep_the_interval_and_the_counts():
    window = exact_window(OTHER, num_tasks=4)
    state, decision = trigger("jtom").check(make_state(), window, 0.0)
    assert (decision.action, decision.interval_s, state.interval_s) == ("skip", 20.0, 20.0)
    assert decision.carried is window
    assert "too few tokens: 0 of 6" in decision.reason


def test_half_of_the_layers_are_enough():
    counts = exact_window(OTHER).counts
    counts[3:] = 0
    window = CountWindow(counts.shape).added(make_report(counts))
    assert trigger("jtom", confirm=False).check(make_state(), window, 0.0)[1].action == "update"
    counts[2] = 0
    window = CountWindow(counts.shape).added(make_report(counts))
    assert trigger("jtom", confirm=False).check(make_state(), window, 0.0)[1].action == "skip"


def test_a_shift_whose_mix_is_the_deployed_one_keeps_the_version_in_product_mode_only():
    state = make_state()
    biased = replace(state, deployed=replace(state.deployed, reference=normalised(SMALL["pronoun"])))
    _, decision = trigger("jtom").check(biased, exact_window(MIX), 0.0)
    assert (decision.action, decision.reason) == ("keep", "same mix")
    assert trigger("jtom", mode="paper").check(biased, exact_window(MIX), 0.0)[1].action == "update"


def test_a_mix_that_barely_moved_is_no_reason_either():
    state = make_state()
    biased = replace(state, deployed=replace(state.deployed, reference=normalised(SMALL["pronoun"])))
    _, decision = trigger("jtom").check(biased, exact_window({"facts": 0.55, "pick": 0.45}), 0.0)
    assert decision.action == "keep"
    assert "moved by 0.05" in decision.reason


def test_steady_new_traffic_is_updated_for_at_the_first_check():
    window = make_window(np.random.default_rng(0), *[OTHER] * 6)
    _, decision = trigger("jtom").check(make_state(), window, 0.0)
    assert decision.action == "update"
    assert decision.mix is not None
    assert decision.mix.shares == {"pronoun": 1.0}


def test_a_window_that_spans_the_change_is_confirmed_on_its_newer_half():
    rng = np.random.default_rng(0)
    jtom = trigger("jtom", confirm_s=5.0)
    state, first = jtom.check(make_state(), make_window(rng, MIX, MIX, MIX, OTHER, OTHER, OTHER), 100.0)
    assert (first.action, first.interval_s, state.due_at_s, state.suspected) == ("skip", 5.0, 105.0, True)
    assert first.carried.num_tasks == 60
    state, second = jtom.check(state, first.carried.joined(make_window(rng, OTHER)), 105.0)
    assert (second.action, state.suspected) == ("update", False)
    assert second.mix is not None
    assert second.mix.shares == {"pronoun": 1.0}


def test_without_confirmation_the_same_window_asks_for_a_blend():
    window = make_window(np.random.default_rng(0), MIX, MIX, MIX, OTHER, OTHER, OTHER)
    _, decision = trigger("jtom", confirm=False).check(make_state(), window, 0.0)
    assert decision.action == "update"
    assert decision.mix is not None
    assert 0.3 < decision.mix.shares["pronoun"] < 0.7


def test_a_passing_burst_is_forgotten_at_the_confirmation():
    rng = np.random.default_rng(4)
    jtom = trigger("jtom")
    state, first = jtom.check(make_state(), make_window(rng, OTHER, OTHER, OTHER, MIX, MIX, MIX), 0.0)
    assert first.action == "skip"
    state, second = jtom.check(state, first.carried.joined(make_window(rng, MIX)), 20.0)
    assert (second.action, state.suspected) == ("keep", False)


def test_traffic_that_never_settles_is_updated_for_at_the_confirmation_with_its_newest_half():
    rng = np.random.default_rng(4)
    state = make_state(suspected=True)
    _, decision = trigger("jtom").check(state, make_window(rng, {"facts": 1.0}, {"facts": 1.0}, OTHER, OTHER), 0.0)
    assert decision.action == "update"
    assert decision.mix is not None
    assert decision.mix.shares == {"pronoun": 1.0}


def test_recent_tasks_hide_older_traffic():
    window = make_window(np.random.default_rng(0), *[MIX] * 12, *[OTHER] * 3)
    _, decision = trigger("jtom", recent_tasks=60).check(make_state(), window, 0.0)
    assert decision.action == "update"
    assert decision.evidence.num_tasks == 60


@pytest.mark.parametrize("mode", ["paper", "product"])
def test_unchanged_traffic_with_enough_tokens_triggers_falsely_in_less_than_one_check_in_a_thousand(mode):
    """The published concern: g = 0.2 against the noise of 500 tokens in a 32-expert layer (0.10 on average)."""
    rng = np.random.default_rng(11)
    frequencies = rng.dirichlet(np.full(32, 2.0), size=12)
    state = TriggerState(Deployed("v1", frequencies, {}, {}), 20.0, 0.0)
    jtom = trigger("jtom", mode=mode, min_tokens=500)
    false_updates, shifts = 0, []
    for _ in range(1000):
        counts = np.stack([rng.multinomial(500, row) for row in frequencies])
        _, decision = jtom.check(state, CountWindow((12, 32)).added(make_report(counts)), 0.0)
        false_updates += decision.action == "update"
        shifts.append(decision.shift)
    assert false_updates == 0
    assert np.mean(shifts) < noise_shift(32, 500) < 0.11


def test_two_hundred_tokens_would_trigger_falsely_if_the_minimum_did_not_skip_them():
    rng = np.random.default_rng(12)
    uniform = np.full((1, 32), 1 / 32)
    over = 0
    for _ in range(500):
        counts = rng.multinomial(200, uniform[0])[None]
        over += activation_shift(normalised(counts), uniform, counts, 1).value >= 0.2
        decision = trigger("jtom").check(
            TriggerState(Deployed("v", uniform, {}, {}), 20, 0), CountWindow((1, 32)).added(make_report(counts)), 0
        )[1]
        assert decision.action == "skip"
    assert over > 5


def test_windows_of_tasks_drawn_from_the_deployed_mix_never_ask_for_an_update():
    """Tasks come whole, so a window's mix wanders more than its tokens do; 60 tasks a window, 12 layers of 32 experts."""
    rng = np.random.default_rng(13)
    expected = per_task(make_profiles(9, num_layers=12, num_experts=32, tokens_per_task=15))
    updates = 0
    for _ in range(300):
        window = make_window(rng, MIX, MIX, MIX, expected=expected)
        updates += trigger("jtom", mode="product").check(make_state(expected), window, 0.0)[1].action == "update"
    assert updates == 0


def test_a_step_change_leads_to_one_update_for_the_new_mix_wherever_it_falls_in_the_window():
    """24 offsets of the change; after the update, f' of the new mix, 20 more windows: no second update in any of them."""
    rng = np.random.default_rng(14)
    jtom = trigger("jtom", interval_s=20.0, adjustment_s=0.0)
    mixes, extra, delays = [], 0, []
    for offset in range(24):
        state, carried, reports_left = make_state(), CountWindow((6, 16)), offset % 6
        for check in range(6):
            old = min(reports_left, 6)
            reports_left -= old
            window = carried.joined(make_window(rng, *[MIX] * old, *[OTHER] * (6 - old)))
            state, decision = jtom.check(state, window, 0.0)
            carried = decision.carried
            if decision.action == "update":
                assert decision.mix is not None
                mixes.append(decision.mix.shares)
                delays.append(check)
                break
        state = make_state(mix=mixes[-1])
        for _ in range(20):
            state, decision = jtom.check(state, make_window(rng, *[OTHER] * 6), 0.0)
            extra += decision.action == "update"
    assert len(mixes) == 24
    assert max(delays) <= 2
    assert max(distance(mix, OTHER) for mix in mixes) <= 0.2
    assert extra == 0


def test_never_measures_the_shift_and_keeps():
    state, decision = trigger("never").check(make_state(), exact_window(OTHER), 7.0)
    assert (decision.action, decision.reason, state.due_at_s) == ("keep", "never updates", 27.0)
    assert decision.shift > 0.2


def test_periodic_asks_every_time_it_has_seen_enough():
    periodic = trigger("periodic", interval_s=30.0)
    state, decision = periodic.check(make_state(), exact_window(MIX), 7.0)
    assert (decision.action, decision.reason, state.due_at_s) == ("update", "every 30 s", 37.0)
    state, decision = periodic.check(state, exact_window(MIX, num_tasks=2), 37.0)
    assert (decision.action, decision.carried.num_tasks) == ("skip", 2)


def test_a_window_is_bounded_and_loses_no_count():
    window, rng = CountWindow((6, 16)), np.random.default_rng(0)
    total = np.zeros((6, 16), dtype=np.int64)
    for _ in range(500):
        counts = rng.integers(0, 9, size=(6, 16))
        total += counts
        window = window.added(make_report(counts))
    assert len(window.reports) <= MAX_REPORTS
    assert (window.counts == total).all()
    assert window.num_tasks == 500 * 20


def test_a_window_splits_by_age_and_a_single_report_has_no_older_half():
    window = CountWindow((1, 2))
    for tasks in (50, 20, 20, 20):
        window = window.added(make_report(np.full((1, 2), tasks), num_tasks=tasks))
    older, newer = window.halves()
    assert (older.num_tasks, newer.num_tasks) == (50, 60)
    one = CountWindow((1, 2)).added(make_report(np.ones((1, 2))))
    assert [half.num_tasks for half in one.halves()] == [0, 20]
    lopsided = CountWindow((1, 2)).added(make_report(np.ones((1, 2)), num_tasks=1)).added(make_report(np.ones((1, 2)), num_tasks=9))
    assert [half.num_tasks for half in lopsided.halves()] == [1, 9]


def test_counts_of_another_shape_are_refused():
    with pytest.raises(CountsError, match=r"\(2, 2\).*\(6, 16\)"):
        CountWindow((6, 16)).added(make_report(np.ones((2, 2))))
