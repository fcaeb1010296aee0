"""Reflection answers for every name that a tool may ask about, methods included."""

from __future__ import annotations

import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from moedge.v1 import inference_pb2
from services.runtime.net import add_health_and_reflection, bind, channel, server

NAME = inference_pb2.DESCRIPTOR.name


async def asked(symbols):
    """Names of the files that reflection says hold each symbol; an error's code where it says none."""
    grpc_server = server()
    add_health_and_reflection(grpc_server, ("moedge.v1.InferenceService",))
    address = bind(grpc_server, "127.0.0.1", 0)
    await grpc_server.start()
    try:
        async with channel(address) as connection:
            requests = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol) for symbol in symbols]
            stub = reflection_pb2_grpc.ServerReflectionStub(connection)
            answers = [answer async for answer in stub.ServerReflectionInfo(iter(requests), timeout=5.0)]
    finally:
        await grpc_server.stop(None)
    return [_answer(answer) for answer in answers]


def _answer(answer):
    if answer.HasField("error_response"):
        return answer.error_response.error_code
    return descriptor_pb2.FileDescriptorProto.FromString(answer.file_descriptor_response.file_descriptor_proto[0]).name


@pytest.mark.parametrize("symbol", ["InferenceService", "InferenceService.Generate", "GenerateRequest", "GenerateRequest.prompt"])
async def test_services_methods_messages_and_fields_are_found_by_name(symbol):
    assert await asked([f"moedge.v1.{symbol}"]) == [NAME]


async def test_what_is_not_there_is_not_found():
    assert await asked(["moedge.v1.InferenceService.Nothing", "nowhere"]) == [5, 5]
