"""A proxy that passes calls of Generate on to edges in turn and decides nothing: what one more hop costs in Python, whoever makes it.

Bytes go through as they come, unread. `python -m loadgen.bench.bare_hop PORT EDGE...` serves until it is ended.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from services.runtime.net import bind, channel, open_stream, server

SERVICE, METHOD = "moedge.v1.InferenceService", "Generate"


@asynccontextmanager
async def bare_hop(edges: Sequence[str], port: int = 0) -> AsyncIterator[str]:
    """Serves in this process; yields its address."""
    async with AsyncExitStack() as stack:
        channels = [await stack.enter_async_context(channel(edge)) for edge in edges]
        in_turn = itertools.cycle([each.unary_stream(f"/{SERVICE}/{METHOD}", None, None) for each in channels])

        async def generate(request: bytes, context: Any) -> None:
            async with open_stream(next(in_turn)(request, timeout=context.time_remaining())) as responses:
                async for response in responses:
                    await context.write(response)

        hop = server()
        handlers = {METHOD: grpc.unary_stream_rpc_method_handler(generate)}
        hop.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        address = bind(hop, "127.0.0.1", port)
        await hop.start()
        try:
            yield address
        finally:
            await hop.stop(None)


async def serve(port: int, edges: Sequence[str]) -> None:
    async with bare_hop(edges, port):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), sys.argv[2:]))
