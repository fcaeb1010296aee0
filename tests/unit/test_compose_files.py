"""Every variable of the compose files is a setting of the service that gets it, and what holds for all containers holds for each file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from services.broker.settings import BrokerSettings
from services.controller.settings import ControllerSettings
from services.merger.settings import MergerSettings
from services.runtime.errors import SettingsError
from services.runtime.settings import COMMAND_VARIABLES, ServiceSettings, refuse_unknown
from services.worker.settings import WorkerSettings

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = [REPOSITORY / "docker-compose.yml", *sorted((REPOSITORY / "infra").glob("*compose*.yml"))]
SETTINGS: dict[str, type[ServiceSettings]] = {
    "broker": BrokerSettings,
    "controller": ControllerSettings,
    "merger": MergerSettings,
    "worker": WorkerSettings,
}
ALLOWED_PORT = re.compile(r"127\.0\.0\.1:")


class _Loader(yaml.SafeLoader):
    """Compose has tags of its own (`!override`, `!reset`): what they stand before is read as it is."""


def _untagged(loader, _suffix, node):
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else loader.construct_scalar(node)


_Loader.add_multi_constructor("!", _untagged)


def services_of(path):
    return (yaml.load(path.read_text(), _Loader) or {}).get("services", {})


def environment_of(service):
    given = service.get("environment") or {}
    pairs = given.items() if isinstance(given, dict) else (line.partition("=")[::2] for line in given)
    return {name: "" if value is None else str(value) for name, value in pairs}


def ours(service):
    return {name: value for name, value in environment_of(service).items() if name.startswith("MOEDGE_")}


CASES = [(path, name, service) for path in FILES for name, service in services_of(path).items() if ours(service)]


@pytest.mark.parametrize(("path", "name", "service"), CASES, ids=[f"{path.name}:{name}" for path, name, _ in CASES])
def test_every_variable_of_a_compose_file_is_a_setting(path, name, service):
    kind = next((settings for word, settings in SETTINGS.items() if name == word or name.startswith(f"{word}-")), None)
    if kind is None:
        assert set(ours(service)) <= set(COMMAND_VARIABLES), f"{path.name}: {name} runs the command, not a service"
        return
    refuse_unknown(kind, ours(service))


@pytest.mark.parametrize("kind", SETTINGS.values(), ids=SETTINGS)
def test_a_variable_that_is_no_setting_is_refused_by_name(kind):
    with pytest.raises(SettingsError, match="MOEDGE_KAFKA_BOOTSTARP: no such setting; did you mean MOEDGE_KAFKA_BOOTSTRAP"):
        refuse_unknown(kind, {"MOEDGE_KAFKA_BOOTSTARP": "kafka:9092"})


def test_the_values_of_the_stack_are_values_that_the_services_take(monkeypatch):
    for name, service in services_of(REPOSITORY / "docker-compose.yml").items():
        kind = next((settings for word, settings in SETTINGS.items() if name == word or name.startswith(f"{word}-")), None)
        if kind is not None:
            with monkeypatch.context() as patched:
                for variable, value in ours(service).items():
                    patched.setenv(variable, value)
                assert kind.load().host == "0.0.0.0"


def test_ports_are_published_on_loopback_alone():
    stack = services_of(REPOSITORY / "docker-compose.yml")
    published = {name: service["ports"] for name, service in stack.items() if service.get("ports")}
    always = {name for name in published if not stack[name].get("profiles")}
    assert always == {"broker"}
    assert all(ALLOWED_PORT.match(str(port)) for ports in published.values() for port in ports)


def test_the_public_images_are_named():
    images = {service["image"] for service in services_of(REPOSITORY / "docker-compose.yml").values()}
    assert {"apache/kafka:4.3.1", "redis:7-bookworm", "moedge/services", "moedge/worker"} <= images
