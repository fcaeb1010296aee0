"""Puts something around every call of a gRPC handler, whatever kind it takes. What goes around them is an interceptor's business."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

import grpc

_MAKE = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def around_calls(handler: Any, entered: Callable[[Any], AbstractAsyncContextManager[None]]) -> Any:
    """The handler, each of whose calls runs inside `entered(context)`; entering may end the call instead."""
    call = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

    async def unary(request: Any, context: Any) -> Any:
        async with entered(context):
            return await call(request, context)

    async def stream(request: Any, context: Any) -> None:
        async with entered(context):
            if not inspect.isasyncgenfunction(call):
                await call(request, context)
                return
            async with aclosing(call(request, context)) as responses:
                async for response in responses:
                    await context.write(response)

    behaviour: Any = stream if handler.response_streaming else unary
    make: Any = _MAKE[handler.request_streaming, handler.response_streaming]
    return make(behaviour, handler.request_deserializer, handler.response_serializer)
