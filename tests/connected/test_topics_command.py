"""`moedge topics` against a real Kafka: what is missing is created as the services expect it, what is there is left alone."""

from __future__ import annotations

import asyncio
import json

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from typer.testing import CliRunner

from loadgen.cli.main import app
from services.runtime.topics import TOPICS, with_dead_letters
from tests.fakes.processes import free_port, started_kafka

pytestmark = [pytest.mark.connected]


@pytest.fixture(scope="module")
def bootstrap(tmp_path_factory):
    with started_kafka(tmp_path_factory.mktemp("topics-kafka")) as kafka:
        yield kafka.bootstrap


def run(*arguments: str):
    return CliRunner().invoke(app, ["topics", *arguments])


def test_it_creates_what_is_missing_once(bootstrap):
    first = run("--kafka", bootstrap, "--json")
    assert first.exit_code == 0, first.output
    assert set(json.loads(first.stdout)["created"]) == {topic.name for topic in with_dead_letters(TOPICS)}
    again = run("--kafka", bootstrap, "--json")
    assert again.exit_code == 0
    assert json.loads(again.stdout)["created"] == []


async def test_topics_have_the_partitions_that_the_services_expect(bootstrap):
    await asyncio.to_thread(run, "--kafka", bootstrap)
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        described = {topic["topic"]: len(topic["partitions"]) for topic in await admin.describe_topics([t.name for t in TOPICS])}
    finally:
        await admin.close()
    assert described == {topic.name: topic.num_partitions for topic in TOPICS}


def test_without_kafka_it_says_so_in_one_line_and_ends_with_3():
    nowhere = f"127.0.0.1:{free_port()}"
    result = run("--kafka", nowhere)
    assert result.exit_code == 3
    assert result.stderr.count("\n") == 1
    assert nowhere in result.stderr
    assert "--wait" in result.stderr
