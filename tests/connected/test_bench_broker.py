"""`moedge bench broker` for a moment, with real Kafka, Redis and processes."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from loadgen.cli.main import app

pytestmark = [pytest.mark.connected]

LOAD = ["--rate", "40", "--duration", "1", "--warm-up", "1", "--rounds", "2", "--edges", "3", "--tokens", "3", "--token-s", "0.002"]
SMALL = [*LOAD, "--most-edges", "10", "--decisions", "20", "--json"]


def test_it_measures_a_broker_of_its_own_and_kafka_has_what_it_wrote(kafka_bootstrap, redis_url):
    ran = CliRunner().invoke(app, ["bench", "broker", "--kafka", kafka_bootstrap, "--redis", redis_url, *SMALL])
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)
    ways = [found[way] for way in ("direct", "hop", "broker")]
    assert {way["num_failed"] for way in ways} == {0}
    assert len({way["num_tasks"] for way in ways}) == 1
    assert found["num_events"] % 2 == 0, "each task was dispatched and completed"
    assert found["num_events"] > 2 * found["broker"]["num_tasks"], "those that warmed it up as well"
    assert set(found["decision_s"]) == {"10"}
    assert found["added_p50_s"] == pytest.approx(sum(found["round_added_p50_s"]) / 2)
    assert found["broker_cpu_s_per_task"] > 0.0
