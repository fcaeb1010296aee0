"""An embedded stack over the pico checkpoint: ready within a second."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path

from moedge.v1 import inference_pb2, inference_pb2_grpc
from services.runtime.net import channel
from services.stack import Stack, StackSettings
from tests.unit.pico import write_pico_checkpoint
from tests.unit.serving_builders import write_tasks


@asynccontextmanager
async def running_stack(directory: Path, **settings):
    if not (directory / "model").exists():
        write_pico_checkpoint(directory / "model")
        write_tasks(directory / "tasks.jsonl")
    given = dict(
        model=str(directory / "model"), tasks=str(directory / "tasks.jsonl"), cache_dir=directory / "cache", edges=2,
        merger={"profiled_items": 8, "measured_items": 4},
    )  # fmt: skip
    async with Stack(StackSettings(**{**given, **settings})) as stack, channel(stack.broker_address) as users:
        yield stack, inference_pb2_grpc.InferenceServiceStub(users)


async def answered(stub, prompt="w1 w2 w3", *, metadata=(), **fields):
    """The summary of one task."""
    request = inference_pb2.GenerateRequest(prompt=prompt, **{"max_tokens": 4, **fields})
    responses = [response async for response in stub.Generate(request, timeout=20, metadata=metadata)]
    return responses[-1].summary
