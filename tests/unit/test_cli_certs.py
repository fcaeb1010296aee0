"""`moedge certs`: what it writes, what it refuses, and what renewing keeps."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl

import pytest
from typer.testing import CliRunner

from loadgen.cli.main import app
from tests.fakes.secured import Certificates, serving


def run(*arguments: str):
    return CliRunner().invoke(app, ["certs", *arguments])


@pytest.fixture
def folder(tmp_path):
    out = tmp_path / "certs"
    ended = run("--out", str(out), "--name", "broker.example.org")
    assert ended.exit_code == 0, ended.output
    assert f"CERTS_DIR={out} docker compose -f docker-compose.yml -f infra/compose.secure.yml up" in ended.stdout
    assert (out / "user.token").read_text().strip() not in ended.output
    return out


def test_a_folder_that_holds_anything_is_left_alone(folder, tmp_path):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    ended = run("--out", str(folder))
    assert ended.exit_code == 2
    assert ended.stderr == f"moedge: {folder}: exists and is not an empty folder; name another, or --renew the certificates in it\n"
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    ended = run("--out", str(tmp_path / "nothing"), "--renew")
    assert ended.exit_code == 2
    assert "--renew needs the authority made before" in ended.stderr


def test_a_name_that_is_none_is_refused(tmp_path):
    ended = run("--out", str(tmp_path / "certs"), "--name", "büro")
    assert ended.exit_code == 2
    assert "neither a host name nor an IP address" in ended.stderr


async def test_renewing_keeps_authority_tokens_and_names_and_renewed_services_know_one_another(folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    security = Certificates(folder).service("worker")
    ended = run("--out", str(folder), "--renew", "--days", "7", "--json")
    assert ended.exit_code == 0
    written = {path.rpartition("/")[2] for path in json.loads(ended.stdout)["files"]}
    assert written == {f"{role}.{kind}" for role in ("broker", "worker", "controller", "merger") for kind in ("pem", "key")}
    assert {name for name, content in before.items() if (folder / name).read_bytes() != content} == written
    renewed = Certificates(folder)
    async with serving(renewed.service("merger"), "merger") as address:
        assert await security.trouble(address, "merger") == ""  # one that was not restarted yet
        assert await renewed.service("worker").trouble(address, "merger") == ""


async def test_other_clients_check_the_brokers_name(folder):
    certificates = Certificates(folder)
    assert run("--out", str(folder), "--renew").exit_code == 0
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    context.set_alpn_protocols(["h2"])

    def shake_hands(address: str, name: str) -> None:
        host, _, port = address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            context.wrap_socket(connection, server_hostname=name).close()

    async with serving(certificates.service("broker"), "broker") as address:
        for name in ("127.0.0.1", "localhost", "broker.example.org", "broker.moedge.internal"):
            await asyncio.to_thread(shake_hands, address, name)
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.to_thread(shake_hands, address, "elsewhere.example.org")
