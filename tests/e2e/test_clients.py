"""Tools that users of gRPC services already have work unmodified against the published port: grpcurl and ghz."""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path

import pytest

from tests.harness.compose import REPOSITORY

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

CLIENTS = REPOSITORY.parent / "shared" / "clients"
GENERATE = "moedge.v1.InferenceService/Generate"
TASK = {"prompt": "yesterday lipafe gokeva caused which outcome", "task_type": "alternative", "max_tokens": 8}
RATE_PER_S, DURATION_S = 10, 60
DEADLINE_S = 20


def client(name: str) -> Path:
    path = CLIENTS / name
    if not path.exists():
        pytest.skip(f"no {name}: ../shared/clients is not beside the checkout")
    return path


async def grpcurl(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(client("grpcurl")), "-plaintext", "-max-time", str(DEADLINE_S), *arguments]
    return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=2 * DEADLINE_S, check=False)


async def test_grpcurl_lists_and_describes_what_the_broker_serves(target):
    listed = await grpcurl(target, "list")
    assert listed.returncode == 0, listed.stderr
    assert {"moedge.v1.InferenceService", "moedge.v1.BrokerService", "grpc.health.v1.Health"} <= set(listed.stdout.split())
    described = await grpcurl(target, "describe", "moedge.v1.InferenceService")
    assert "rpc Generate ( .moedge.v1.GenerateRequest ) returns ( stream .moedge.v1.GenerateResponse );" in described.stdout
    message = await grpcurl(target, "describe", "moedge.v1.GenerateRequest")
    assert "string prompt = 1;" in message.stdout


async def test_grpcurl_streams_an_answer(target):
    answered = await grpcurl("-d", json.dumps(TASK), target, GENERATE)
    assert answered.returncode == 0, answered.stderr
    events = objects(answered.stdout)
    kinds = [next(iter(event)) for event in events]
    assert (kinds[0], kinds[-1]) == ("accepted", "summary")
    assert set(kinds[1:-1]) == {"token"}
    assert "".join(event["token"].get("text", "") for event in events[1:-1]) == events[-1]["summary"]["text"]
    assert events[-1]["summary"]["version"] == events[0]["accepted"]["version"]


def objects(text: str) -> list[dict]:
    """The JSON objects of a text, one after the other."""
    decoder, found, position = json.JSONDecoder(), [], 0
    while position < len(text.rstrip()):
        value, end = decoder.raw_decode(text, position + len(text[position:]) - len(text[position:].lstrip()))
        found.append(value)
        position = end
    return found


async def test_grpcurl_shows_an_error_with_its_details(target):
    refused = await grpcurl("-d", json.dumps({**TASK, "alpha": 7}), target, GENERATE)
    assert refused.returncode != 0
    for part in ("Code: InvalidArgument", "alpha", "google.rpc.ErrorInfo", "INVALID_FIELD", "google.rpc.BadRequest", "moedge"):
        assert part in refused.stderr


async def test_ghz_at_ten_calls_a_second_for_a_minute_sees_no_failure(target, out):
    report = out / "ghz.json"
    command = [str(client("ghz")), "--insecure", "--async", "--rps", str(RATE_PER_S), "--total", str(RATE_PER_S * DURATION_S)]
    command += [
        "--timeout",
        f"{DEADLINE_S}s",
        "--call",
        GENERATE,
        "--data",
        json.dumps(TASK),
        "--format",
        "json",
        "--output",
        str(report),
        target,
    ]
    ended = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=3 * DURATION_S, check=False)
    assert ended.returncode == 0, ended.stderr
    figures = json.loads(report.read_text())
    assert figures["statusCodeDistribution"] == {"OK": RATE_PER_S * DURATION_S}
    assert figures["total"] / 1e9 == pytest.approx(DURATION_S, rel=0.1)  # open loop: it did not wait for answers
