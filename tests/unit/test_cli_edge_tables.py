"""What people see of twenty edges in 80 columns: every heading and name whole, one row an edge in each table."""

from __future__ import annotations

import pytest
from rich.console import Console

from loadgen.cli.edge_tables import picture
from loadgen.cli.explain import _print
from loadgen.cli.status import as_json
from moedge.v1 import broker_pb2, worker_pb2
from services.runtime.codec import duration

TASK_TYPES = ("alternative", "answer", "facts", "question", "referent")
NAMES = [f"{tier}-{number}" for tier in ("large", "medium", "small") for number in range(1, 7)] + ["barn", "worker-medium-3"]


def listed(task_types=TASK_TYPES, **fields):
    edges = [
        broker_pb2.Edge(
            edge_id=name,
            version="bb462e303be38e88",
            state=worker_pb2.EDGE_STATE_UNREACHABLE if name == "barn" else worker_pb2.EDGE_STATE_READY,
            pinned=name == "barn",
            quality=dict.fromkeys(task_types, 0.625),
            mix={task_types[0]: 0.85, task_types[1]: 0.15},
            memory_bytes=1_200_000,
            model_bytes=1_100_000,
            max_batch=4,
            outstanding_tasks=68,
            running_tasks=4,
            queued_tasks=64,
            predicted_queue_wait=duration(12.75),
            speed=0.75,
            device="cuda:0",
            updates=15,
        )
        for name in NAMES
    ]
    return broker_pb2.ListEdgesResponse(edges=edges, policy="onto", base_model="a1b2c3d4e5f60718", kafka_connected=True, **fields)


def shown(what, columns: int) -> list[str]:
    console = Console(width=columns, highlight=False)
    with console.capture() as capture:
        console.print(what)
    return capture.get().splitlines()


@pytest.mark.parametrize("columns", [80, 120])
def test_twenty_edges_fit_with_every_heading_and_name_whole(columns):
    lines = shown(picture(as_json(listed(), "127.0.0.1:50051")), columns)
    text = "\n".join(lines)
    assert max(map(len, lines)) <= columns
    assert "…" not in text
    for heading in ("state", "version", "tasks", "running", "queued", "wait", "updates", "device", "memory", "slots", *TASK_TYPES):
        assert heading in text.replace("\n", " ").split(), heading
    assert [sum(line.startswith(f"{name} ") for line in lines) for name in NAMES] == [3] * len(NAMES)
    assert "unreachable pinned" in text
    assert "12.75 s" in text


def test_more_task_types_than_columns_are_written_out():
    types = tuple(f"type-number-{n}" for n in range(9))
    text = "\n".join(shown(picture(as_json(listed(types), "here:1")), 80))
    assert "…" not in text
    assert all(name in text for name in types)


def test_the_lag_of_the_controller_is_told_in_words_and_as_json():
    lag = broker_pb2.ConsumerLag(topic="moedge.activations.v1", group="moedge-controller", records=12, behind=duration(1.5))
    status = as_json(listed(lags=[lag]), "here:1")
    assert status["lags"] == [{"topic": "moedge.activations.v1", "group": "moedge-controller", "records": 12, "behind_s": 1.5}]
    assert "moedge-controller is 12 records (1.50 s) behind in moedge.activations.v1" in shown(picture(status), 80)
    lag.records = 0
    assert "moedge-controller has read all of moedge.activations.v1" in shown(picture(as_json(listed(lags=[lag]), "here:1")), 80)


def test_an_explained_decision_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    candidates = [
        broker_pb2.CandidateEstimate(
            edge_id=name,
            uplink=duration(0.005),
            queue_wait=duration(12.3),
            inference=duration(0.35),
            downlink=duration(0.08),
            completion_time=duration(12.735),
            quality=0.75,
            cost=-1.234,
            output_tokens=7.3,
            outstanding_tasks=12,
        )
        for name in NAMES
    ]
    _print(broker_pb2.ExplainResponse(chosen="barn", policy="onto", reason="lowest predicted cost", candidates=candidates, alpha=0.5))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["edge", "uplink", "wait", "inference", "downlink", "completion", "quality", "cost", "tasks"]
    assert lines[-2].startswith("predicted answer: 7.3 tokens   decided in ")
