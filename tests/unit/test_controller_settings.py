"""Settings of the controller: a trigger gets the options it has, and a bad setting is one clear line."""

import pytest

from loadgen.simulator.comparison import OURS
from services.controller.settings import ControllerSettings
from services.core import defaults
from services.core.merging.triggers.portfolio import Trigger
from services.runtime.errors import SettingsError
from services.stack import StackSettings


def test_options_that_the_trigger_has_reach_it_and_others_do_not():
    jtom = ControllerSettings.load(merger_address="m:1", trigger="jtom", interval_s=7.0, threshold=0.3, mode="paper").merge_trigger()
    assert (jtom.name, jtom.interval_s, jtom.raw_frequencies) == ("jtom", 7.0, True)
    assert ControllerSettings.load(merger_address="m:1", trigger="never", threshold=0.3).merge_trigger().name == "never"


def test_portfolio_checks_at_an_interval_of_its_own_and_knows_what_quality_is_worth():
    trigger = ControllerSettings.load(merger_address="m:1", trigger="portfolio", quality_scale=2.0).merge_trigger()
    assert isinstance(trigger, Trigger)
    assert (trigger.name, trigger.interval_s, trigger.quality_scale) == (OURS.trigger, 10.0, 2.0)


def test_without_a_word_controllers_and_stacks_run_what_simulations_call_ours():
    told = {ControllerSettings.load(merger_address="m:1").trigger, StackSettings(model="any").trigger, OURS.trigger}
    assert told == {defaults.TRIGGER}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"trigger": "always"}, "no such trigger: 'always'; there are .*jtom, never, periodic"),
        ({"threshold": 1.5}, "MOEDGE_CONTROLLER_THRESHOLD"),
        ({"mode": "books"}, "MOEDGE_CONTROLLER_MODE"),
    ],
)
def test_bad_settings_are_named(given, words):
    with pytest.raises(SettingsError, match=words):
        ControllerSettings.load(merger_address="m:1", **given)


def test_the_merger_must_be_named():
    with pytest.raises(SettingsError, match="MOEDGE_CONTROLLER_MERGER_ADDRESS"):
        ControllerSettings.load()


def test_the_environment_is_read_and_unknown_variables_are_refused(monkeypatch):
    monkeypatch.setenv("MOEDGE_CONTROLLER_MERGER_ADDRESS", "m:2")
    monkeypatch.setenv("MOEDGE_CONTROLLER_INTERVAL_S", "3")
    assert ControllerSettings.load().interval_s == 3.0
    monkeypatch.setenv("MOEDGE_CONTROLLER_TRESHOLD", "0.1")
    with pytest.raises(SettingsError, match="did you mean MOEDGE_CONTROLLER_THRESHOLD"):
        ControllerSettings.load()
