"""Channel and server options that a frozen peer needs, binding, health and reflection."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from moedge.v1 import inference_pb2_grpc
from services.runtime import net
from services.runtime.lifecycle import drain

SERVICE = "moedge.v1.InferenceService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def test_both_ends_carry_the_keepalive_set():
    """Without `ping_timeout_ms` a frozen peer goes unnoticed for a minute; at server defaults a silent call ends with `too_many_pings`."""
    client, server = dict(net.CHANNEL_OPTIONS), dict(net.SERVER_OPTIONS)
    assert client["grpc.keepalive_time_ms"] == 10_000
    assert client["grpc.keepalive_timeout_ms"] == client["grpc.http2.ping_timeout_ms"] == 3_000
    assert client["grpc.http2.max_pings_without_data"] == 0
    assert client["grpc.keepalive_permit_without_calls"] == server["grpc.keepalive_permit_without_calls"] == 1
    assert server["grpc.http2.min_ping_interval_without_data_ms"] < client["grpc.keepalive_time_ms"]
    assert not [name for name in server if "min_recv" in name], "this spelling has no effect in Python"
    assert client["grpc.max_receive_message_length"] == server["grpc.max_receive_message_length"] == 8 * 1024 * 1024


class SilentService(inference_pb2_grpc.InferenceServiceServicer):
    async def Generate(self, request, context):
        await context.abort(grpc.StatusCode.UNIMPLEMENTED)
        yield


@pytest.fixture
async def served():
    server = net.server()
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(SilentService(), server)
    health = net.add_health_and_reflection(server, [SERVICE])
    address = net.bind(server, "127.0.0.1", 0)
    await server.start()
    async with net.channel(address) as channel:
        yield server, health, channel
    await server.stop(0)


async def check(channel, name=""):
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
    return answer.status


@pytest.mark.parametrize("name", ["", SERVICE])
async def test_health_is_not_serving_until_said_and_again_after_the_drain(served, name):
    _, health, channel = served
    assert await check(channel, name) == NOT_SERVING
    await health.serving()
    assert await check(channel, name) == SERVING
    await health.draining()
    assert await check(channel, name) == NOT_SERVING
    await health.serving()
    assert await check(channel, name) == NOT_SERVING


async def test_reflection_lists_the_services(served):
    _, _, channel = served
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=5)
    async with net.open_stream(call) as answers:
        answer = await answers.read()
    names = {service.name for service in answer.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


async def test_a_drained_server_takes_no_new_calls(served):
    server, health, channel = served
    await drain(server, health, grace_s=0.1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(channel)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_taken_port_is_said_plainly(served):
    server = net.server()
    address = net.bind(server, "127.0.0.1", 0)
    await server.start()
    other = net.server()
    with pytest.raises(OSError, match=r"cannot listen on 127\.0\.0\.1:\d+: the port is taken"):
        net.bind(other, "127.0.0.1", int(address.rsplit(":", 1)[1]))
    await server.stop(0)


@pytest.mark.slow
async def test_a_silent_call_outlives_the_servers_ping_tolerance(served):
    """75 s without a byte: at server defaults the call died after 50 s."""
    _, _, channel = served
    call = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=75)
    async with net.open_stream(call) as stream:
        assert (await stream.read()).status == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
