"""The status table: every way that a call can end badly, as one value (`RpcFailure`), sent and read back as google.rpc.Status details.

The table maps domain errors to gRPC codes in one place. It does not decide what to do about a failure.
"""

from __future__ import annotations

import functools
import inspect
import logging
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NoReturn, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as ProtoAny
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from services.core.merging import errors as merging_errors
from services.core.offload.values import NoCandidateError
from services.model import errors as model_errors
from services.runtime.errors import RuntimeFault
from services.runtime.eventlog import EventLogUnavailableError, OutboxFullError
from services.runtime.scope import REQUEST_ID, current

logger = logging.getLogger(__name__)

DOMAIN = "moedge"
DETAILS_KEY = "grpc-status-details-bin"

Code = grpc.StatusCode


class RpcFailure(RuntimeFault):
    """One row of the status table. `message` is safe to show to users; `reason` is UPPER_SNAKE and stable."""

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        *,
        field: str | None = None,
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s
        self.metadata: Mapping[str, str] = dict(metadata or {})

    def __repr__(self) -> str:
        return f"RpcFailure({self.code.name}, {self.reason}, {self.message!r})"


# The rows.


def invalid_field(field: str, message: str) -> RpcFailure:
    return RpcFailure(Code.INVALID_ARGUMENT, "INVALID_FIELD", f"{field}: {message}", field=field)


def prompt_too_long(prompt_tokens: int, max_prompt_tokens: int) -> RpcFailure:
    message = f"prompt: {prompt_tokens} tokens, at most {max_prompt_tokens} are taken; shorten it"
    metadata = {"prompt_tokens": str(prompt_tokens), "max_prompt_tokens": str(max_prompt_tokens)}
    return RpcFailure(Code.OUT_OF_RANGE, "PROMPT_TOO_LONG", message, field="prompt", metadata=metadata)


def budget_too_small(smallest_bytes: int, message: str | None = None) -> RpcFailure:
    text = message or f"budget_bytes: too small for this model; the smallest that works is {smallest_bytes}"
    metadata = {"smallest_bytes": str(smallest_bytes)}
    return RpcFailure(Code.OUT_OF_RANGE, "BUDGET_TOO_SMALL", text, field="budget_bytes", metadata=metadata)


def not_found(what: str, name: str, known: Iterable[str] = ()) -> RpcFailure:
    names = ", ".join(sorted(known))
    message = f"{what} {name!r} is not known here" + (f"; there are {names}" if names else "")
    return RpcFailure(Code.NOT_FOUND, "NOT_FOUND", message, metadata={what: name})


def queue_full(message: str = "every queue is full; try again later", *, retry_after_s: float = 1.0) -> RpcFailure:
    return RpcFailure(Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", message, retry_after_s=retry_after_s)


def outbox_full(message: str = "the event outbox is full; try again later", *, retry_after_s: float = 5.0) -> RpcFailure:
    return RpcFailure(Code.RESOURCE_EXHAUSTED, "OUTBOX_FULL", message, retry_after_s=retry_after_s)


def no_edge(message: str = "no healthy edge can take the task", *, retry_after_s: float = 1.0) -> RpcFailure:
    return RpcFailure(Code.UNAVAILABLE, "NO_EDGE", message, retry_after_s=retry_after_s)


def draining(message: str = "draining: no new tasks are taken here", *, retry_after_s: float = 1.0) -> RpcFailure:
    return RpcFailure(Code.UNAVAILABLE, "DRAINING", message, retry_after_s=retry_after_s)


def starting(message: str = "starting: not ready yet", *, retry_after_s: float = 1.0) -> RpcFailure:
    return RpcFailure(Code.UNAVAILABLE, "STARTING", message, retry_after_s=retry_after_s)


def predicted_late(predicted_s: float | None = None, remaining_s: float | None = None) -> RpcFailure:
    figures = f": {predicted_s:.3f} s predicted, {remaining_s:.3f} s left" if predicted_s is not None and remaining_s is not None else ""
    return RpcFailure(Code.DEADLINE_EXCEEDED, "PREDICTED_LATE", f"the deadline cannot be met{figures}")


def edge_died(tokens_emitted: int, message: str | None = None) -> RpcFailure:
    text = message or f"the edge died after {tokens_emitted} tokens and the rest could not be resumed"
    return RpcFailure(Code.ABORTED, "EDGE_DIED", text, metadata={"tokens_emitted": str(tokens_emitted)})


def failed_precondition(reason: str, message: str) -> RpcFailure:
    return RpcFailure(Code.FAILED_PRECONDITION, reason, message)


def unauthenticated(message: str) -> RpcFailure:
    return RpcFailure(Code.UNAUTHENTICATED, "UNAUTHENTICATED", message)


def permission_denied(message: str) -> RpcFailure:
    return RpcFailure(Code.PERMISSION_DENIED, "PERMISSION_DENIED", message)


def data_loss(message: str, *, reason: str = "CORRUPT_BLOB") -> RpcFailure:
    return RpcFailure(Code.DATA_LOSS, reason, message)


def internal(request_id: str) -> RpcFailure:
    message = f"internal error; the log has it under request {request_id}"
    return RpcFailure(Code.INTERNAL, "INTERNAL", message, metadata={"request_id": request_id})


def _no_candidate(error: NoCandidateError) -> RpcFailure:
    match error.reason:
        case "late":
            return RpcFailure(Code.DEADLINE_EXCEEDED, "PREDICTED_LATE", str(error))
        case "queue_full":
            return queue_full(str(error))
        case _:
            return no_edge(str(error))


# One row a type; subclasses before their bases.
_TABLE: tuple[tuple[type[BaseException], Callable[[Any], RpcFailure]], ...] = (
    (RpcFailure, lambda e: e),
    (NoCandidateError, _no_candidate),
    (OutboxFullError, lambda e: outbox_full()),
    (EventLogUnavailableError, lambda e: RpcFailure(Code.UNAVAILABLE, "EVENT_LOG", str(e), retry_after_s=1.0)),
    (merging_errors.BudgetError, lambda e: budget_too_small(e.smallest_bytes, str(e))),
    (merging_errors.MixError, lambda e: invalid_field("mix", str(e))),
    (merging_errors.OptionError, lambda e: invalid_field("options", str(e))),
    (model_errors.PromptError, lambda e: invalid_field("prompt", str(e))),
    (model_errors.BlobError, lambda e: data_loss(str(e))),
    (model_errors.CheckpointError, lambda e: failed_precondition("CHECKPOINT", str(e))),
    (model_errors.DeviceError, lambda e: failed_precondition("DEVICE", str(e))),
    (grpc.aio.AioRpcError, lambda e: failure_of(e)),
)


def failure_for(error: BaseException) -> RpcFailure | None:
    """The row for an error of core, model or runtime; None for one that the table does not know (a bug, hence INTERNAL)."""
    return next((row(error) for kind, row in _TABLE if isinstance(error, kind)), None)


# On the wire.


def to_status(failure: RpcFailure) -> status_pb2.Status:
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=failure.reason, domain=DOMAIN, metadata=dict(failure.metadata))]
    if failure.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=failure.field, description=failure.message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if failure.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(round(failure.retry_after_s * 1e9))
        details.append(retry)
    status = status_pb2.Status(code=failure.code.value[0], message=failure.message)
    for detail in details:
        status.details.add().Pack(detail)
    return status


async def abort(context: Any, failure: RpcFailure) -> NoReturn:
    """End the call with the failure's code, message and details."""
    trailing = ((DETAILS_KEY, to_status(failure).SerializeToString()),)
    await context.abort(failure.code, failure.message, trailing)
    raise AssertionError("abort returned")


def failure_of(rpc_error: grpc.aio.AioRpcError) -> RpcFailure:
    """What the peer said, or what the transport did: details are read back where there are any."""
    code = rpc_error.code()
    failure = RpcFailure(code, "TRANSPORT", rpc_error.details() or code.name.lower())
    trailing = cast("Iterable[tuple[str, str | bytes]]", rpc_error.trailing_metadata() or ())
    blob = next((value for key, value in trailing if key == DETAILS_KEY), None)
    if not isinstance(blob, bytes):
        return failure
    try:
        _read_details(status_pb2.Status.FromString(blob).details, failure)
    except DecodeError:
        logger.debug("unreadable status details from a peer")
    return failure


def _read_details(details: Sequence[ProtoAny], failure: RpcFailure) -> None:
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    for detail in details:
        if detail.Unpack(info):
            failure.reason, failure.metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad) and bad.field_violations:
            failure.field = bad.field_violations[0].field
        elif detail.Unpack(retry):
            failure.retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9


# Around servicer methods.

MethodT = TypeVar("MethodT", bound=Callable[..., Any])


def request_id_of(context: Any) -> str:
    """The one that logs of this call carry."""
    given = current().request_id or next((value for key, value in (context.invocation_metadata() or ()) if key == REQUEST_ID), None)
    return str(given)[:64] if given else uuid.uuid4().hex


def guarded(method: MethodT) -> MethodT:
    """Decorates a servicer method (`async def`, or an async generator for a stream) so that what it raises ends the call by the table.

    Cancellation passes untouched. An error outside the table is a bug: it is logged with traceback, the caller gets INTERNAL and the
    request id. A decorated stream writes to the context itself, so that the generator is closed the moment the call ends.
    """
    if inspect.isasyncgenfunction(method):

        async def call(self: Any, request: Any, context: Any) -> Any:
            async with aclosing(method(self, request, context)) as responses:
                async for response in responses:
                    await context.write(response)
    else:
        call = method

    @functools.wraps(method)
    async def wrapper(self: Any, request: Any, context: Any) -> Any:
        try:
            return await call(self, request, context)
        except (grpc.aio.AbortError, grpc.aio.UsageError):
            raise
        except Exception as error:  # the top of a call
            failure = failure_for(error)
            if failure is None:
                request_id = request_id_of(context)
                logger.exception("request failed in %s", method.__qualname__, extra={"request_id": request_id})
                failure = internal(request_id)
            await abort(context, failure)

    return cast(MethodT, wrapper)
