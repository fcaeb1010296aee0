"""Who may call what on a secured server: nothing is open but health checks, everything else has a row in one of two tables.

Brokers ask for a token with one of the scopes of the row, all other services for a certificate of one of its roles. An RPC without a
row is refused to everyone.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio

from services.runtime.around import around_calls
from services.runtime.security import DOMAIN, ROLES, Security
from services.runtime.status import RpcFailure, abort, permission_denied, unauthenticated
from services.runtime.tokens import SCOPES, TokenHash, holder_of

logger = logging.getLogger(__name__)

OPEN_SERVICE = "/grpc.health.v1.Health/"
_REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
_ANY_SCOPE, _ANY_ROLE = frozenset(SCOPES), frozenset[str](ROLES)
_INFER, _OPERATE, _JOIN = frozenset({"infer"}), frozenset({"operate"}), frozenset({"join"})
_BROKER, _CONTROLLER, _WORKER = frozenset({"broker"}), frozenset({"controller"}), frozenset({"worker"})

# On brokers: any of these scopes lets a token call the method.
TOKEN_SCOPES: Mapping[str, frozenset[str]] = {
    _REFLECTION: _ANY_SCOPE,
    "/moedge.v1.InferenceService/Generate": _INFER,
    "/moedge.v1.BrokerService/ListEdges": _INFER | _OPERATE,
    "/moedge.v1.BrokerService/Explain": _INFER | _OPERATE,
    "/moedge.v1.BrokerService/ScoreTask": _INFER,
    "/moedge.v1.BrokerService/PinEdge": _OPERATE,
    "/moedge.v1.BrokerService/UnpinEdge": _OPERATE,
    "/moedge.v1.BrokerService/RollBackEdge": _OPERATE,
    "/moedge.v1.BrokerService/DrainEdge": _OPERATE,
    "/moedge.v1.BrokerService/ResumeEdge": _OPERATE,
    "/moedge.v1.BrokerService/Join": _JOIN,
}

# On every other service: services of these roles may call the method.
CALLER_ROLES: Mapping[str, frozenset[str]] = {
    _REFLECTION: _ANY_ROLE,
    "/moedge.v1.InferenceService/Generate": _BROKER,
    "/moedge.v1.WorkerService/GetStatus": _BROKER,
    "/moedge.v1.WorkerService/LoadVersion": _CONTROLLER,
    "/moedge.v1.WorkerService/SetPinned": _BROKER,
    "/moedge.v1.WorkerService/RollBack": _BROKER,
    "/moedge.v1.WorkerService/Drain": _BROKER,
    "/moedge.v1.WorkerService/Resume": _BROKER,
    "/moedge.v1.MergerService/BuildModel": _CONTROLLER | _WORKER,
    "/moedge.v1.MergerService/GetManifest": _CONTROLLER | _WORKER,
    "/moedge.v1.MergerService/FetchBlob": _WORKER,
    "/moedge.v1.MergerService/GetProfiles": _BROKER | _WORKER,
}


class Access(Protocol):
    """Decides from the call's method and what the caller showed: None lets it in."""

    def refusal(self, method: str, context: Any) -> RpcFailure | None: ...


@dataclass(frozen=True, slots=True)
class TokenAccess:
    """By the bearer token in the call's metadata."""

    known: tuple[TokenHash, ...]

    def refusal(self, method: str, context: Any) -> RpcFailure | None:
        token = _bearer(context.invocation_metadata() or ())
        if token is None:
            return unauthenticated("no token; send `authorization: Bearer TOKEN` (moedge: --token-file FILE)")
        holder = holder_of(token, self.known)
        if holder is None:
            return unauthenticated("this token is not known here; ask the operator for one")
        scopes = TOKEN_SCOPES.get(method, frozenset())
        if not scopes & holder.scopes:
            needs = f"it needs scope {' or '.join(sorted(scopes))}" if scopes else "no scope allows it"
            return permission_denied(f"token {holder.name!r} may not call {_short(method)}; {needs}")
        if scopes == _OPERATE:
            logger.info("%s by token %s", _short(method), holder.name)
        return None


@dataclass(frozen=True, slots=True)
class RoleAccess:
    """By the role in the caller's certificate, which TLS has checked."""

    def refusal(self, method: str, context: Any) -> RpcFailure | None:
        names = (name.decode("ascii", "replace") for name in context.auth_context().get("x509_subject_alternative_name", ()))
        roles = {name.removesuffix(f".{DOMAIN}") for name in names if name.endswith(f".{DOMAIN}")} & _ANY_ROLE
        if not roles:
            return unauthenticated(f"the certificate names no role of this stack (such as broker.{DOMAIN})")
        allowed = CALLER_ROLES.get(method, frozenset())
        if not roles & allowed:
            return permission_denied(f"{' and '.join(sorted(roles))} may not call {_short(method)}")
        return None


def access_for(security: Security) -> Access:
    return TokenAccess(security.users) if security.role == "broker" else RoleAccess()


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # any request, any response
    """Asks before every call; health checks pass unasked."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler: Any = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if method.startswith(OPEN_SERVICE):
            return handler
        return self._guarded(handler, method)

    def _guarded(self, handler: Any, method: str) -> Any:
        @asynccontextmanager
        async def admitted(context: Any) -> AsyncIterator[None]:
            if failure := self._access.refusal(method, context):
                await abort(context, failure)
            yield

        async def nobody(request: Any, context: Any) -> None:
            failure = self._access.refusal(method, context)
            if failure is not None and failure.code is grpc.StatusCode.UNAUTHENTICATED:
                await abort(context, failure)
            # Clients that look for a newer reflection fall back to ours on this status only.
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{_short(method)} does not exist")

        if handler is None:
            return grpc.unary_unary_rpc_method_handler(nobody)
        return around_calls(handler, admitted)


def _bearer(metadata: Any) -> str | None:
    for key, value in metadata:
        if key == "authorization" and isinstance(value, str) and value[:7].lower() == "bearer ":
            return value[7:].strip()
    return None


def _short(method: str) -> str:
    return method.rpartition(".")[2]
