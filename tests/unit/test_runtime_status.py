"""The status table: each row travels over a real loopback call and is read back whole."""

import asyncio
import logging

import grpc
import pytest

from moedge.v1 import inference_pb2, inference_pb2_grpc
from services.core.merging.errors import BudgetError, MixError
from services.core.offload.values import Exclusion, NoCandidateError
from services.model import errors as model_errors
from services.runtime import net, status
from services.runtime.eventlog import OutboxFullError
from tests.fakes.waiting import until

Code = grpc.StatusCode

ROWS = [
    status.invalid_field("alpha", "must be in (0, 1], got 2.0"),
    status.prompt_too_long(600, 512),
    status.budget_too_small(1024),
    status.not_found("edge", "edge-9"),
    status.queue_full(retry_after_s=0.5),
    status.no_edge(),
    status.draining(),
    status.starting(),
    status.predicted_late(2.0, 1.0),
    status.edge_died(7),
    status.failed_precondition("PINNED", "the edge is pinned"),
    status.data_loss("blob abc: digest differs"),
    status.internal("r-1"),
]


class RaisingService(inference_pb2_grpc.InferenceServiceServicer):
    """Streams `num_tokens` tokens, then raises `error` (or waits for ever without one)."""

    def __init__(self):
        self.error = None
        self.num_tokens = 0
        self.num_active = 0

    @status.guarded
    async def Generate(self, request, context):
        self.num_active += 1
        try:
            for token_id in range(self.num_tokens):
                yield inference_pb2.GenerateResponse(token=inference_pb2.Token(token_id=token_id))
            if self.error is not None:
                raise self.error
            await asyncio.Event().wait()
        finally:
            self.num_active -= 1


@pytest.fixture
async def service():
    return RaisingService()


@pytest.fixture
async def stub(service):
    server = net.server()
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(service, server)
    address = net.bind(server, "127.0.0.1", 0)
    await server.start()
    async with net.channel(address) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)
    await server.stop(0)


async def read_into(got, stub, timeout_s=5):
    async with net.open_stream(stub.Generate(inference_pb2.GenerateRequest(), timeout=timeout_s)) as stream:
        async for response in stream:
            got.append(response.token.token_id)


async def failure_from(stub, service, error):
    service.error = error
    got: list[int] = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_into(got, stub)
    return status.failure_of(caught.value)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.reason)
async def test_a_row_travels_whole(row, stub, service):
    got = await failure_from(stub, service, row)
    assert (got.code, got.reason, got.message) == (row.code, row.reason, row.message)
    assert (got.field, got.retry_after_s, got.metadata) == (row.field, row.retry_after_s, row.metadata)


def excluded(*reasons):
    return NoCandidateError(tuple(Exclusion(f"edge-{i}", reason) for i, reason in enumerate(reasons)))


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (excluded("late", "draining"), Code.DEADLINE_EXCEEDED, "PREDICTED_LATE"),
        (excluded("queue_full", "unreachable"), Code.RESOURCE_EXHAUSTED, "QUEUE_FULL"),
        (excluded("draining"), Code.UNAVAILABLE, "NO_EDGE"),
        (excluded(), Code.UNAVAILABLE, "NO_EDGE"),
        (OutboxFullError("full"), Code.RESOURCE_EXHAUSTED, "OUTBOX_FULL"),
        (BudgetError(10, 5), Code.OUT_OF_RANGE, "BUDGET_TOO_SMALL"),
        (MixError("shares sum to 0.5"), Code.INVALID_ARGUMENT, "INVALID_FIELD"),
        (model_errors.PromptError("empty"), Code.INVALID_ARGUMENT, "INVALID_FIELD"),
        (model_errors.BlobError("digest differs"), Code.DATA_LOSS, "CORRUPT_BLOB"),
        (model_errors.CheckpointError("config.json is missing"), Code.FAILED_PRECONDITION, "CHECKPOINT"),
    ],
    ids=lambda value: getattr(value, "name", None) or type(value).__name__ if not isinstance(value, str) else value,
)
async def test_an_error_of_the_domain_ends_the_call_by_the_table(error, code, reason, stub, service):
    got = await failure_from(stub, service, error)
    assert (got.code, got.reason) == (code, reason)


async def test_rows_that_may_be_retried_say_when():
    for error in (excluded("queue_full"), excluded("draining")):
        row = status.failure_for(error)
        assert row is not None
        assert row.retry_after_s is not None
    late = status.failure_for(excluded("late"))
    assert late is not None
    assert late.retry_after_s is None


async def test_a_bug_is_internal_with_a_request_id_and_the_traceback_stays_in_the_log(stub, service, caplog):
    with caplog.at_level(logging.ERROR):
        got = await failure_from(stub, service, KeyError("secret detail"))
    assert got.code is Code.INTERNAL
    assert "secret" not in got.message
    assert [getattr(record, "request_id", "") for record in caplog.records] == [got.metadata["request_id"]]
    assert "KeyError" in caplog.text


async def test_tokens_sent_before_the_failure_arrive(stub, service):
    service.num_tokens, service.error = 3, status.edge_died(3)
    got: list[int] = []
    with pytest.raises(grpc.aio.AioRpcError):
        await read_into(got, stub)
    assert got == [0, 1, 2]


async def test_leaving_a_stream_cancels_the_handler(stub, service):
    """An abandoned `grpc.aio` stream is never cancelled by itself (grpc/grpc#43462): five of five handlers stayed active."""
    service.num_tokens = 1
    for _ in range(5):
        async with net.open_stream(stub.Generate(inference_pb2.GenerateRequest(), timeout=60)) as stream:
            await stream.read()
    await until(lambda: service.num_active == 0, what="handlers at rest")


async def test_a_deadline_ends_the_handler(stub, service):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_into([], stub, timeout_s=0.2)
    assert status.failure_of(caught.value).code is Code.DEADLINE_EXCEEDED
    await until(lambda: service.num_active == 0, what="handlers at rest")


async def test_a_dead_peer_is_unavailable_with_a_transport_reason():
    async with net.channel("127.0.0.1:1") as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async with net.open_stream(stub.Generate(inference_pb2.GenerateRequest(), timeout=5)) as stream:
                await stream.read()
    got = status.failure_of(caught.value)
    assert (got.code, got.reason) == (Code.UNAVAILABLE, "TRANSPORT")
