"""A channel whose every call carries a user's token.

Not the call credentials of gRPC: their plugin runs on a thread of its C core that waits for the interpreter, and in one process with an
asyncio server that is being stopped the two wait for each other for ever (grpcio 1.85, one stop in ten).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, cast

import grpc.aio


def bearing(channel: grpc.aio.Channel, token: str) -> grpc.aio.Channel:
    """For TLS channels only."""
    return cast(grpc.aio.Channel, _BearerChannel(channel, token))


class _BearerChannel:
    """What stubs and `async with` use of a channel."""

    def __init__(self, channel: grpc.aio.Channel, token: str) -> None:
        self._channel = channel
        self._own = (("authorization", f"Bearer {token}"),)

    def unary_unary(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        return self._bearing(self._channel.unary_unary(*arguments, **options))

    def unary_stream(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        return self._bearing(self._channel.unary_stream(*arguments, **options))

    def stream_unary(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        return self._bearing(self._channel.stream_unary(*arguments, **options))

    def stream_stream(self, *arguments: Any, **options: Any) -> Callable[..., Any]:
        return self._bearing(self._channel.stream_stream(*arguments, **options))

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    async def __aenter__(self) -> Self:
        await self._channel.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._channel.__aexit__(*error)

    def _bearing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def with_token(*requests: Any, metadata: Any = None, **options: Any) -> Any:
            return call(*requests, metadata=(*(metadata or ()), *self._own), **options)

        return with_token
