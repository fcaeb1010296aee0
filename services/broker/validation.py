"""Checks a Generate or Explain request before anything else happens, and fills in defaults. Every refusal names the field and the cure."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from moedge.v1 import broker_pb2, inference_pb2
from services.broker.settings import BrokerSettings
from services.core.offload.values import EdgeSnapshot
from services.runtime.status import RpcFailure, invalid_field

MAX_NAME_CHARS = 128
DEFAULT_LINK = "default"
ANONYMOUS = "anonymous"


@dataclass(frozen=True, slots=True)
class TaskFields:
    """A request as the broker takes it."""

    prompt: str
    prompt_bytes: int
    max_tokens: int
    user_id: str
    region: str
    task_type: str | None
    alpha: float
    idempotency_key: str

    @property
    def digest(self) -> bytes:
        """Equal for equal tasks: what a repeated idempotency key is held against."""
        parts = (self.prompt, str(self.max_tokens), self.region, self.task_type or "", repr(self.alpha))
        return hashlib.blake2b("\x00".join(parts).encode(), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Known:
    """What the broker knows at the moment and checks requests against; empty or 0 means that nothing is known."""

    edges: Sequence[EdgeSnapshot]
    task_types: frozenset[str]
    max_new_tokens: int


def task_fields(request: inference_pb2.GenerateRequest | broker_pb2.ExplainRequest, settings: BrokerSettings, known: Known) -> TaskFields:
    prompt_bytes = _prompt_bytes(request.prompt, settings.max_prompt_bytes)
    key = ""
    if isinstance(request, inference_pb2.GenerateRequest):
        if request.HasField("dispatch"):
            raise invalid_field("dispatch", "set by brokers only; leave it out")
        key = request.idempotency_key
    for field, value in (("user_id", request.user_id), ("region", request.region), ("idempotency_key", key)):
        if len(value) > MAX_NAME_CHARS:
            raise invalid_field(field, f"{len(value)} characters; at most {MAX_NAME_CHARS} are taken")
    return TaskFields(
        prompt=request.prompt,
        prompt_bytes=prompt_bytes,
        max_tokens=_max_tokens(request.max_tokens, settings, known),
        user_id=request.user_id or ANONYMOUS,
        region=_region(request.region, settings, known),
        task_type=_task_type(request.task_type, known),
        alpha=_alpha(request.alpha) if request.HasField("alpha") else settings.default_alpha,
        idempotency_key=key,
    )


def _prompt_bytes(prompt: str, limit: int) -> int:
    if not prompt.strip():
        raise invalid_field("prompt", "empty; send some text")
    prompt_bytes = len(prompt.encode())
    if prompt_bytes > limit:
        message = f"prompt: {prompt_bytes} bytes, at most {limit} are taken; shorten it"
        raise RpcFailure(grpc.StatusCode.OUT_OF_RANGE, "PROMPT_TOO_LONG", message, field="prompt")
    return prompt_bytes


def _max_tokens(asked: int, settings: BrokerSettings, known: Known) -> int:
    limit = min(settings.max_tokens_limit, known.max_new_tokens or settings.max_tokens_limit)
    if asked > limit:
        raise invalid_field("max_tokens", f"{asked}; at most {limit} are generated")
    return asked or min(settings.default_max_tokens, limit)


def _alpha(alpha: float) -> float:
    if not math.isfinite(alpha) or not 0.0 < alpha <= 1.0:
        raise invalid_field("alpha", f"{alpha}; send a number above 0 and up to 1, or leave it out")
    return alpha


def _task_type(task_type: str, known: Known) -> str | None:
    if not task_type:
        return None
    if known.task_types and task_type not in known.task_types:
        raise invalid_field(
            "task_type", f"{task_type[:MAX_NAME_CHARS]!r} is unknown; send one of {', '.join(sorted(known.task_types))}, or none"
        )
    return task_type


def _region(region: str, settings: BrokerSettings, known: Known) -> str:
    """Without one: the setting, else the link `default`, else the region that most edges have a link to."""
    if region and any(region in edge.links for edge in known.edges):
        return region
    counts = Counter(name for edge in known.edges for name in edge.links)
    if not region:
        if settings.default_region or DEFAULT_LINK in counts or not counts:
            return settings.default_region or DEFAULT_LINK
        return min(counts, key=lambda name: (-counts[name], name))
    if counts and DEFAULT_LINK not in counts and all(edge.links for edge in known.edges):
        raise invalid_field("region", f"{region!r}: no edge has a link to it; send one of {', '.join(sorted(counts))}, or none")
    return region
