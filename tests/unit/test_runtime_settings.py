"""Settings: sources, precedence, and one clear line for each mistake."""

import pytest
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.runtime.errors import SettingsError
from services.runtime.settings import ServiceSettings


class BrokerLikeSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="MOEDGE_BROKER_")

    policy: str = "onto"
    max_attempts: int = Field(3, ge=1)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    import os

    for name in list(os.environ):
        if name.startswith("MOEDGE_"):
            monkeypatch.delenv(name)


def test_defaults_need_no_environment():
    settings = BrokerLikeSettings.load()
    assert settings.policy == "onto"
    assert settings.kafka_bootstrap is None


def test_the_services_own_variable_wins_over_the_shared_one_and_an_override_over_both(monkeypatch):
    monkeypatch.setenv("MOEDGE_HOST", "10.0.0.1")
    monkeypatch.setenv("MOEDGE_KAFKA_BOOTSTRAP", "kafka:9092")
    monkeypatch.setenv("MOEDGE_BROKER_HOST", "10.0.0.2")
    settings = BrokerLikeSettings.load()
    assert (settings.host, settings.kafka_bootstrap) == ("10.0.0.2", "kafka:9092")
    assert BrokerLikeSettings.load(host="10.0.0.3", port=None).host == "10.0.0.3"


def test_a_shared_prefix_does_not_set_a_services_own_field(monkeypatch):
    monkeypatch.setenv("MOEDGE_POLICY", "random")
    with pytest.raises(SettingsError, match=r"MOEDGE_POLICY: no such setting; did you mean MOEDGE_BROKER_POLICY\?"):
        BrokerLikeSettings.load()


def test_an_unknown_variable_is_refused_with_the_nearest_known_one(monkeypatch):
    monkeypatch.setenv("MOEDGE_BROKER_POLICI", "onto")
    with pytest.raises(SettingsError, match=r"^MOEDGE_BROKER_POLICI: no such setting; did you mean MOEDGE_BROKER_POLICY\?$"):
        BrokerLikeSettings.load()


def test_another_services_variables_are_not_ours_to_judge(monkeypatch):
    monkeypatch.setenv("MOEDGE_WORKER_WHATEVER", "1")
    assert BrokerLikeSettings.load().policy == "onto"


def test_a_bad_value_names_the_variable(monkeypatch):
    monkeypatch.setenv("MOEDGE_BROKER_MAX_ATTEMPTS", "0")
    with pytest.raises(SettingsError, match=r"^MOEDGE_BROKER_MAX_ATTEMPTS: .*greater than or equal to 1$"):
        BrokerLikeSettings.load()


def test_an_unknown_override_is_refused():
    with pytest.raises(SettingsError, match=r"polisy: no such setting; did you mean policy\?"):
        BrokerLikeSettings.load(polisy="onto")
