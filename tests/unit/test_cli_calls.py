"""Commands that call a broker: what they print, and how they end when the broker refuses or is not there."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.protobuf.any_pb2 import Any as ProtoAny
from google.rpc import error_details_pb2, status_pb2
from typer.testing import CliRunner

from loadgen.cli.main import app
from moedge.v1 import broker_pb2, broker_pb2_grpc, inference_pb2, inference_pb2_grpc, worker_pb2
from services.runtime.codec import duration

EDGE = broker_pb2.Edge(
    edge_id="barn",
    version="0123456789abcdef",
    state=worker_pb2.EDGE_STATE_READY,
    quality={"question": 0.9, "facts": 0.4},
    memory_bytes=2_000_000,
    model_bytes=1_900_000,
    max_batch=4,
    outstanding_tasks=3,
    predicted_queue_wait=duration(0.25),
    speed=0.5,
    mix={"question": 1.0},
    updates=2,
)


class FakeInference(inference_pb2_grpc.InferenceServiceServicer):
    """Answers each prompt with itself, word by word; some prompts make it restart or refuse."""

    def Generate(self, request, context):
        if request.prompt == "":
            refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "prompt: empty; write one")
        if request.prompt == "busy":
            refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", "every queue is full")
        if request.prompt == "slow":
            threading.Event().wait(1)
        yield inference_pb2.GenerateResponse(accepted=inference_pb2.Accepted(edge_id="barn", predicted_quality=0.9))
        for word in request.prompt.split():
            yield inference_pb2.GenerateResponse(token=inference_pb2.Token(text=f"{word} "))
            if word == "fall":
                yield inference_pb2.GenerateResponse(restarted=inference_pb2.Restarted(edge_id="shed", reason="barn died"))
        summary = inference_pb2.Summary(
            text=request.prompt,
            edge_id="barn",
            version="0123456789abcdef",
            attempts=1,
            task_type=request.task_type,
            finish_reason=inference_pb2.FINISH_REASON_STOP,
            output_tokens=len(request.prompt.split()),
            timings=inference_pb2.Timings(completion_time=duration(0.5), queue_wait=duration(0.125)),
        )
        yield inference_pb2.GenerateResponse(summary=summary)


class FakeBroker(broker_pb2_grpc.BrokerServiceServicer):
    def ListEdges(self, request, context):
        return broker_pb2.ListEdgesResponse(edges=[EDGE], policy="onto", base_model="base", quality_scale=1.0, kafka_connected=True)

    def Explain(self, request, context):
        if request.prompt == "":
            refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "prompt: empty; write one")
        near = broker_pb2.CandidateEstimate(edge_id="barn", completion_time=duration(0.5), quality=0.9, cost=0.05)
        return broker_pb2.ExplainResponse(
            chosen="barn",
            policy="onto",
            reason="lowest predicted cost",
            candidates=[near],
            excluded=[broker_pb2.ExcludedEdge(edge_id="shed", reason="draining")],
            posterior={request.task_type: 1.0},
            alpha=request.alpha,
            quality_scale=1.0,
        )

    def PinEdge(self, request, context):
        if request.edge_id != "barn":
            refuse(context, grpc.StatusCode.NOT_FOUND, "NOT_FOUND", f"edge {request.edge_id!r} is not known here")
        return broker_pb2.PinEdgeResponse(version=EDGE.version)

    def DrainEdge(self, request, context):
        return broker_pb2.DrainEdgeResponse(outstanding_tasks=3)

    def ResumeEdge(self, request, context):
        return broker_pb2.ResumeEdgeResponse(version=EDGE.version)


def refuse(context, code, reason, message):
    detail = ProtoAny()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="moedge"))
    status = status_pb2.Status(code=code.value[0], message=message, details=[detail])
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, message)


@pytest.fixture(scope="module")
def target():
    server = grpc.server(ThreadPoolExecutor(4))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(FakeInference(), server)
    broker_pb2_grpc.add_BrokerServiceServicer_to_server(FakeBroker(), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


def run(*args: str, **kwargs):
    return CliRunner().invoke(app, list(args), **kwargs)


def test_infer_streams_tokens_to_stdout_and_the_rest_to_stderr(target):
    result = run("infer", "one two", "--task", "question", "--target", target)
    assert result.exit_code == 0
    assert result.stdout.strip() == "one two"
    assert "edge barn" in result.stderr
    assert "wait 125 ms" in result.stderr


def test_infer_reads_the_prompt_from_standard_input(target):
    assert run("infer", "-", "--target", target, input="from a pipe\n").stdout.strip() == "from a pipe"


def test_infer_says_when_the_edge_died_and_another_started_over(target):
    result = run("infer", "they fall twice", "--target", target)
    assert result.exit_code == 0
    assert "restarted on shed: barn died; discard the above" in result.stderr


def test_infer_as_json_is_one_object_with_units_in_its_names(target):
    printed = json.loads(run("infer", "one two", "--task", "question", "--target", target, "--json").stdout)
    assert printed["text"] == "one two"
    assert printed["finish_reason"] == "stop"
    assert printed["timings"]["completion_time_s"] == 0.5


@pytest.mark.parametrize(
    ("prompt", "exit_code", "line"),
    [
        ("", 2, "moedge: INVALID_ARGUMENT prompt: empty; write one"),
        ("busy", 1, "moedge: RESOURCE_EXHAUSTED every queue is full"),
    ],
)
def test_a_refused_task_is_one_line_and_an_exit_code_that_says_whose_fault_it_is(target, prompt, exit_code, line):
    result = run("infer", prompt, "--target", target)
    assert result.exit_code == exit_code
    assert result.stderr.strip() == line
    assert result.stdout == ""


def test_status_shows_every_edge_and_as_json_every_figure(target):
    shown = run("status", "--target", target, env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert "barn" in shown.stdout
    printed = json.loads(run("status", "--target", target, "--json").stdout)
    (edge,) = printed["edges"]
    assert (edge["edge_id"], edge["state"], edge["outstanding_tasks"]) == ("barn", "ready", 3)
    assert edge["predicted_queue_wait_s"] == 0.25
    assert printed["redis_connected"] is False


def test_explain_shows_the_choice_and_why_others_were_none(target):
    shown = run("explain", "hello", "--task", "question", "--alpha", "0.5", "--target", target, env={"COLUMNS": "200"})
    assert "barn: lowest predicted cost (onto)" in shown.stdout
    assert "shed: no candidate, draining" in shown.stdout
    printed = json.loads(run("explain", "hello", "--alpha", "0.5", "--target", target, "--json").stdout)
    assert printed["candidates"][0]["cost"] == 0.05
    assert printed["alpha"] == 0.5


def test_edges_are_pinned_drained_and_resumed_by_name(target):
    assert json.loads(run("edges", "pin", "barn", "--target", target, "--json").stdout)["version"] == EDGE.version
    assert "outstanding_tasks 3" in run("edges", "drain", "barn", "--target", target).stdout
    assert EDGE.version in run("edges", "resume", "barn", "--target", target).stdout


def test_an_unknown_edge_is_bad_input(target):
    result = run("edges", "pin", "shed", "--target", target)
    assert result.exit_code == 2
    assert result.stderr.strip() == "moedge: NOT_FOUND edge 'shed' is not known here"


def test_an_answer_that_does_not_come_in_time_is_told_once_and_without_the_words_of_grpc(target):
    result = run("infer", "slow", "--timeout", "0.05", "--target", target)
    assert result.exit_code == 1
    assert result.stderr.startswith("moedge: no answer within the deadline; ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["infer", "explain"])
def test_a_dash_reads_the_prompt_from_standard_input(target, command):
    asked = CliRunner().invoke(app, [command, "-", "--target", target], input="")
    assert "prompt: empty; write one" in asked.stderr


CALLS = [("infer", "hi"), ("explain", "hi"), ("status",), ("edges", "pin", "barn"), ("edges", "drain", "barn")]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: " ".join(call))
def test_a_target_that_is_not_there_exits_3_with_the_cure(call):
    result = run(*call, "--target", "127.0.0.1:1")
    assert result.exit_code == 3
    assert result.stderr.startswith("moedge: cannot reach the target")
    assert "moedge up" in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("call", CALLS, ids=lambda call: " ".join(call))
def test_a_target_that_is_no_address_is_bad_input(call):
    result = run(*call, "--target", "somewhere")
    assert result.exit_code == 2
    assert result.stderr.startswith("moedge: target: 'somewhere' is not HOST:PORT, such as 127.0.0.1:50051, or a range")
    assert result.stderr.count("\n") == 1
