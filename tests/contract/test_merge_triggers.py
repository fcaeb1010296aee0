"""What every registered merge trigger keeps to, whoever adds it: one body over all of them."""

from __future__ import annotations

import ast
import inspect
import sys
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from services.core.merging.engine import MergeEngine
from services.core.merging.errors import OptionError
from services.core.merging.mix import expected
from services.core.merging.triggers import Deployed, TriggerState, names, options, trigger
from services.core.merging.values import ActivationWindow, normalised
from services.core.merging.windows import CountWindow
from tests.unit.merging_builders import draw_counts, make_profiles, make_report, per_task

EXPECTED = per_task(make_profiles(3, num_layers=4, num_experts=12, tokens_per_task=40))
MIX, OTHER = {"facts": 0.6, "pick": 0.4}, {"pronoun": 1.0}
QUALITY = {"facts": 0.7, "pick": 0.5, "pronoun": 0.2}
CLOCKS = {"time", "datetime", "asyncio", "random", "secrets", "os", "uuid"}
every_trigger = pytest.mark.parametrize("name", names())


def make_state(**overrides):
    reference = normalised(expected(EXPECTED, MIX))
    return TriggerState(Deployed("v1", reference, EXPECTED, MIX, QUALITY), 20.0, 0.0, **overrides)


def make_window(seed, mix, num_tasks=200):
    return CountWindow((4, 12)).added(make_report(draw_counts(np.random.default_rng(seed), EXPECTED, mix, num_tasks), num_tasks=num_tasks))


@every_trigger
@pytest.mark.parametrize("mix", [MIX, OTHER], ids=["same traffic", "other traffic"])
def test_equal_windows_give_equal_decisions_with_a_reason_in_words_and_a_later_check(name, mix):
    made = trigger(name)
    state, decision = made.check(make_state(), make_window(1, mix), 100.0)
    again_state, again = made.check(make_state(), make_window(1, mix), 100.0)
    assert (decision.action, decision.reason, decision.interval_s) == (again.action, again.reason, again.interval_s)
    assert (state.due_at_s, state.memory) == (again_state.due_at_s, again_state.memory)
    assert state.due_at_s > 100.0
    assert decision.action in ("update", "keep", "skip")
    assert len(decision.reason) > 5
    assert 0.0 <= decision.shift <= 1.0


@every_trigger
def test_a_window_without_a_token_updates_nothing_and_loses_nothing(name):
    empty = CountWindow((4, 12))
    _, decision = trigger(name).check(make_state(), empty, 100.0)
    assert decision.action == "skip"
    assert decision.carried.num_tasks == 0


@every_trigger
def test_a_trigger_keeps_nothing_between_calls(name):
    made = trigger(name)
    with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
        made.interval_s = 1.0  # type: ignore[misc]
    first = made.check(make_state(), make_window(1, OTHER), 100.0)[1]
    made.check(make_state(), make_window(2, MIX), 100.0)
    assert made.check(make_state(), make_window(1, OTHER), 100.0)[1].reason == first.reason


@every_trigger
def test_counts_without_profiles_or_quality_are_decided_too(name):
    bare = make_state()
    bare = replace(bare, deployed=Deployed("v1", bare.deployed.reference, {}, {}))
    assert trigger(name).check(bare, make_window(1, OTHER), 100.0)[1].action in ("update", "keep", "skip")


@every_trigger
def test_an_update_asks_for_a_mix_of_known_task_types_that_sums_to_one(name):
    state = make_state()
    for n in range(8):
        state, decision = trigger(name).check(state, make_window(n, OTHER), 100.0 + 100.0 * n)
        if decision.mix is not None:
            assert set(decision.mix.shares) <= set(EXPECTED)
            assert sum(decision.mix.shares.values()) == pytest.approx(1.0)


@every_trigger
def test_what_it_remembers_survives_a_restart_of_the_controller(name):
    def decided(engine, round_of):
        report = make_report(draw_counts(np.random.default_rng(round_of), EXPECTED, OTHER, 200), num_tasks=200)
        window = replace(report, edge_id="e", version=engine.deployed_version("e"), start_at_s=0.0, end_at_s=1.0)
        assert isinstance(window, ActivationWindow)
        engine.observe(window, 1000.0 * round_of)
        request = engine.check("e", 1000.0 * round_of)
        decision = engine.decision("e")
        if request is not None:
            engine.deployed("e", f"v{round_of}", normalised(EXPECTED["facts"]), EXPECTED, request.mix, 1000.0 * round_of, QUALITY)
        return decision.action, decision.reason

    running, restarted = MergeEngine(trigger(name)), MergeEngine(trigger(name))
    for engine in (running, restarted):
        engine.deployed("e", "v0", make_state().deployed.reference, EXPECTED, MIX, 0.0, QUALITY)
    for n in range(1, 6):
        first = decided(running, n)
        assert decided(restarted, n) == first
        saved = restarted.dump("e", 1000.0 * n)
        restarted = MergeEngine(trigger(name))
        restarted.restore("e", saved, 1000.0 * n)


@every_trigger
def test_no_trigger_imports_a_clock_or_a_source_of_chance(name):
    tree = ast.parse(inspect.getsource(sys.modules[type(trigger(name)).__module__]))
    imported = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & CLOCKS


@every_trigger
def test_its_name_is_its_file_and_an_unknown_option_is_refused(name):
    assert trigger(name).name == name
    assert "interval_s" in options(name)
    with pytest.raises(OptionError, match="no option 'colour'"):
        trigger(name, colour="red")
