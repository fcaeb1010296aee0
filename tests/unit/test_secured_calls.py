"""Secured servers on loopback: who is let in by which RPC, and what callers with wrong papers are told."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from moedge.v1 import broker_pb2, inference_pb2, merger_pb2, worker_pb2
from services.runtime.access import CALLER_ROLES, TOKEN_SCOPES
from services.runtime.net import PLAINTEXT, Network
from services.runtime.probe import is_serving
from services.runtime.security import ROLES, role_name
from tests.fakes.secured import SERVICES, Certificates, expired, made, path_of, reflected, serving, status_of

Code = grpc.StatusCode
HEALTH = "grpc.health.v1.Health"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Certificates:
    return made(tmp_path_factory.mktemp("secured") / "certs")


@pytest.fixture(scope="module")
def others(tmp_path_factory) -> Certificates:
    """Of another stack, with another authority and other tokens."""
    return made(tmp_path_factory.mktemp("others") / "certs")


async def test_every_rpc_of_a_broker_but_health_needs_a_token(certificates):
    async with serving(certificates.service("broker"), "broker") as address:
        methods = await reflected(certificates.user("user"), address, "broker")
        assert {path_of(method) for method in methods} >= set(TOKEN_SCOPES)
        async with certificates.user(None).channel(address, "broker") as nobody:
            for method in methods:
                code = await status_of(nobody, method)
                health = method.containing_service.full_name == HEALTH
                assert (code is not Code.UNAUTHENTICATED) if health else (code is Code.UNAUTHENTICATED), path_of(method)


@pytest.mark.parametrize("role", [role for role in ROLES if role != "broker"])
async def test_every_rpc_of_the_other_services_but_health_needs_a_certificate_of_a_role(certificates, role):
    async with serving(certificates.service(role), role) as address:
        methods = await reflected(certificates.service("worker"), address, role)
        assert {method.containing_service.full_name for method in methods} >= {*SERVICES[role], HEALTH}
        nobody = certificates.signed(["somebody.example.org"], role=None)
        async with nobody.channel(address, role) as channel:
            for method in methods:
                code = await status_of(channel, method)
                health = method.containing_service.full_name == HEALTH
                assert (code is not Code.UNAUTHENTICATED) if health else (code is Code.UNAUTHENTICATED), path_of(method)


def test_every_rpc_of_the_protos_has_a_row():
    files = (broker_pb2, inference_pb2, merger_pb2, worker_pb2)
    services = {service.full_name: service for file in files for service in file.DESCRIPTOR.services_by_name.values()}
    for role, names in SERVICES.items():
        rows = TOKEN_SCOPES if role == "broker" else CALLER_ROLES
        for name in names:
            assert {path_of(method) for method in services[name].methods} <= set(rows), f"{role}: give each RPC a row in runtime/access.py"


@pytest.mark.parametrize("token", ["user", "operator", "join"])
async def test_a_token_opens_what_its_scopes_say_and_nothing_else(certificates, token):
    scopes = {"user": {"infer"}, "operator": {"infer", "operate"}, "join": {"join"}}[token]
    async with serving(certificates.service("broker"), "broker") as address:
        methods = await reflected(certificates.user(token), address, "broker")
        async with certificates.user(token).channel(address, "broker") as channel:
            for method in methods:
                allowed = TOKEN_SCOPES.get(path_of(method))
                if allowed is None or method.client_streaming:
                    continue
                wanted = Code.UNIMPLEMENTED if scopes & allowed else Code.PERMISSION_DENIED
                assert await status_of(channel, method) is wanted, path_of(method)


@pytest.mark.parametrize("caller", ROLES)
@pytest.mark.parametrize("role", ["worker", "merger"])
async def test_a_role_may_call_what_the_table_says_and_nothing_else(certificates, role, caller):
    async with serving(certificates.service(role), role) as address:
        methods = await reflected(certificates.service(caller), address, role)
        async with certificates.service(caller).channel(address, role) as channel:
            for method in methods:
                allowed = CALLER_ROLES.get(path_of(method))
                if allowed is None or method.client_streaming:
                    continue
                wanted = Code.UNIMPLEMENTED if caller in allowed else Code.PERMISSION_DENIED
                assert await status_of(channel, method) is wanted, (caller, path_of(method))


async def test_a_method_that_does_not_exist_is_told_to_known_callers_only(certificates):
    async with serving(certificates.service("broker"), "broker") as address:
        for token, wanted in ((None, Code.UNAUTHENTICATED), ("user", Code.UNIMPLEMENTED)):
            async with certificates.user(token).channel(address, "broker") as channel:
                assert await channel.unary_unary("/moedge.v1.BrokerService/Nothing")(b"", timeout=10).code() is wanted


async def test_a_token_of_another_stack_and_a_scheme_that_is_not_bearer_are_unauthenticated(certificates, others):
    token = (others.folder / "user.token").read_text().strip()
    async with serving(certificates.service("broker"), "broker") as address, certificates.user(None).channel(address, "broker") as channel:
        call = channel.unary_unary("/moedge.v1.BrokerService/ListEdges")
        for header in (f"Bearer {token}", f"Basic {token}", "Bearer", "Bearer ", token, ""):
            answer = call(b"", timeout=10, metadata=(("authorization", header),))
            assert await answer.code() is Code.UNAUTHENTICATED, header
            assert token not in (await answer.details())


async def tried(caller: Network, address: str, peer) -> tuple[Code, str]:
    async with caller.channel(address, peer) as channel:
        call = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        return await call.code(), await caller.trouble(address, peer)


async def test_a_peer_of_another_authority_is_named(certificates, others):
    async with serving(certificates.service("broker"), "broker") as broker:
        code, trouble = await tried(others.user(), broker, "broker")
    assert code is Code.UNAVAILABLE
    assert trouble.startswith(f"TLS handshake with broker at {broker}: the certificate is not signed by the authority given as CA")


async def test_a_peer_of_another_role_is_named(certificates):
    async with serving(certificates.service("worker"), "worker") as worker:
        code, trouble = await tried(certificates.service("broker"), worker, "merger")
    assert code is Code.UNAVAILABLE
    assert "the certificate is not for merger.moedge.internal" in trouble


async def test_an_expired_peer_is_named(certificates, tmp_path):
    old = expired(certificates, tmp_path / "old")
    security = certificates.security("merger")
    stale = Network(replace(security, certificate=(old.folder / "merger.pem").read_bytes(), key=(old.folder / "merger.key").read_bytes()))
    async with serving(stale, "merger") as merger:
        code, trouble = await tried(certificates.service("worker"), merger, "merger")
    assert code is Code.UNAVAILABLE
    assert "the certificate has expired" in trouble


async def test_a_caller_whose_own_certificate_has_expired_is_told_so(certificates):
    ended = certificates.signed([role_name("worker")], role="worker", days=1, made_at=datetime.now(UTC) - timedelta(days=3))
    async with serving(certificates.service("merger"), "merger") as merger:
        code, trouble = await tried(ended, merger, "merger")
    assert code is Code.UNAVAILABLE
    assert "it refuses our certificate: the certificate has expired" in trouble


async def test_a_user_without_a_certificate_is_told_to_call_the_broker(certificates):
    async with serving(certificates.service("worker"), "worker") as worker:
        code, trouble = await tried(certificates.user(), worker, "worker")
    assert code is Code.UNAVAILABLE
    assert "it asks for a certificate of the stack" in trouble


async def test_plaintext_and_tls_that_meet_are_named_from_either_side(certificates):
    async with serving(certificates.service("broker"), "broker") as secured, serving(PLAINTEXT, "broker") as open_one:
        code, trouble = await tried(PLAINTEXT, secured, "broker")
        assert code is Code.UNAVAILABLE
        assert "it speaks TLS and was called in plaintext" in trouble
        code, trouble = await tried(certificates.user(), open_one, "broker")
        assert code is Code.UNAVAILABLE
        assert "it speaks plaintext and was called over TLS" in trouble
        assert await PLAINTEXT.trouble(open_one, "broker") == ""
        assert await certificates.user().trouble(secured, "broker") == ""


async def test_nobody_listening_is_no_matter_of_tls(certificates):
    assert await certificates.user().trouble("127.0.0.1:1", "broker") == ""


async def test_one_target_of_several_addresses_is_looked_at_whole(certificates, others):
    async with serving(certificates.service("broker"), "broker") as broker:
        target = f"ipv4:127.0.0.1:1,{broker}"
        assert await certificates.user().trouble(target, "broker") == ""
        assert broker in await others.user().trouble(target, "broker")
        async with certificates.user().channel(target, "broker") as channel:
            call = channel.unary_unary("/moedge.v1.BrokerService/ListEdges")(b"", timeout=10)
            assert await call.code() is Code.UNIMPLEMENTED


@pytest.mark.parametrize("role", ROLES)
async def test_the_probe_of_a_container_speaks_tls(certificates, role, monkeypatch):
    for name, file in (("CA", "ca.pem"), ("CERT", f"{role}.pem"), ("KEY", f"{role}.key")):
        monkeypatch.setenv(f"MOEDGE_TLS_{name}", str(certificates.folder / file))
    async with serving(certificates.service(role), role) as address:
        assert await asyncio.to_thread(is_serving, address) == (True, "SERVING")
    monkeypatch.delenv("MOEDGE_TLS_CA")
    async with serving(certificates.service(role), role) as address:
        assert (await asyncio.to_thread(is_serving, address))[0] is False


async def test_no_token_and_no_key_reaches_a_log_or_a_repr(certificates, caplog):
    caplog.set_level(logging.DEBUG)
    tokens = {name: (certificates.folder / f"{name}.token").read_text().strip() for name in ("user", "operator")}
    async with serving(certificates.service("broker"), "broker") as address:
        for name in tokens:
            async with certificates.user(name).channel(address, "broker") as channel:
                for method in ("Generate", "PinEdge", "ListEdges"):
                    service = "InferenceService" if method == "Generate" else "BrokerService"
                    await channel.unary_unary(f"/moedge.v1.{service}/{method}")(b"", timeout=10).code()
    assert "BrokerService/PinEdge by token operator" in caplog.text
    said = caplog.text + repr(certificates.security("broker")) + repr(certificates.user("user"))
    key = (certificates.folder / "broker.key").read_text().splitlines()[1]
    assert not [secret for secret in (*tokens.values(), key) if secret in said]
