"""A secured service checks its papers before anything starts: each mistake is one line that names the setting and the cure."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys

import pytest

from services.broker.settings import BrokerSettings
from services.runtime.errors import SettingsError
from services.runtime.security import read_security, user_security
from services.runtime.settings import ServiceSettings
from services.runtime.tokens import hash_of, holder_of, read_token_hashes
from services.worker.settings import WorkerSettings
from tests.fakes.secured import Certificates, expired, made


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Certificates:
    return made(tmp_path_factory.mktemp("settings") / "certs")


def refusal(certificates: Certificates, role, **overrides) -> str:
    with pytest.raises(SettingsError) as refused:
        certificates.security(role, **overrides)
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_good_papers_are_taken_and_none_mean_plaintext(certificates):
    assert certificates.security("merger").role == "merger"
    assert read_security(ServiceSettings.load(), "merger") is None


@pytest.mark.parametrize("missing", ["tls_cert", "tls_key", "tls_ca"])
def test_certificate_key_and_authority_go_together(certificates, missing):
    given = {name: path for name, path in certificates.settings("merger").model_dump().items() if name.startswith("tls_")}
    with pytest.raises(SettingsError, match=f"MOEDGE_BROKER_\\*: tls_cert, tls_key and tls_ca go together; missing: {missing}"):
        BrokerSettings.load(**{**given, missing: None})


@pytest.mark.parametrize("name", ["tls_cert", "tls_key", "tls_ca"])
def test_a_missing_file_is_named_with_its_setting(certificates, name, tmp_path):
    message = refusal(certificates, "merger", **{name: tmp_path / "nothing.pem"})
    assert message == f"MOEDGE_{name.upper()}: {tmp_path / 'nothing.pem'}: cannot be read (No such file or directory)"


@pytest.mark.parametrize("name", ["tls_cert", "tls_key", "tls_ca"])
@pytest.mark.parametrize("content", [b"", b"not PEM", b"\xff\xfe\x00"])
def test_a_damaged_file_is_named_with_its_setting(certificates, name, content, tmp_path):
    damaged = tmp_path / "damaged.pem"
    damaged.write_bytes(content)
    message = refusal(certificates, "merger", **{name: damaged})
    assert message.startswith(f"MOEDGE_{name.upper()}: {damaged}: not a")


def test_the_key_of_another_certificate_is_refused(certificates):
    message = refusal(certificates, "merger", tls_key=certificates.folder / "broker.key")
    assert message.startswith("MOEDGE_TLS_KEY: ")
    assert "is not the key of tls_cert" in message


def test_the_certificate_of_another_role_is_refused(certificates):
    folder = certificates.folder
    message = refusal(certificates, "merger", tls_cert=folder / "worker.pem", tls_key=folder / "worker.key")
    assert message.startswith("MOEDGE_TLS_CERT: ")
    assert "is not for merger.moedge.internal" in message


def test_the_certificate_of_another_authority_is_refused(certificates, tmp_path):
    other = made(tmp_path / "other")
    message = refusal(certificates, "merger", tls_ca=other.folder / "ca.pem")
    assert "is not signed by the authority given as CA" in message


def test_an_expired_certificate_is_refused(certificates, tmp_path):
    message = refusal(expired(certificates, tmp_path / "old"), "merger")
    assert message.startswith("MOEDGE_TLS_CERT: ")
    assert "the certificate has expired; make a new one with `moedge certs --renew`" in message


def test_a_broker_with_tls_needs_tokens_and_tokens_need_tls(certificates, tmp_path):
    with pytest.raises(SettingsError, match="MOEDGE_TOKENS_FILE: missing; with TLS the broker asks users for tokens"):
        read_security(certificates.settings("broker"), "broker")
    with pytest.raises(SettingsError, match="MOEDGE_BROKER_TOKENS_FILE: tokens go over TLS only"):
        read_security(BrokerSettings.load(), "broker", tokens_file=tmp_path / "tokens.toml")
    with pytest.raises(SettingsError, match="MOEDGE_WORKER_JOIN_TOKEN_FILE: tokens go over TLS only"):
        read_security(WorkerSettings.load(), "worker", token_file=tmp_path / "join.token")


def test_a_users_token_goes_over_tls_only(certificates):
    with pytest.raises(SettingsError, match="--token-file: a token goes over TLS only; give --ca FILE"):
        user_security(None, certificates.folder / "user.token")
    with pytest.raises(SettingsError, match=r"--ca: .*user.token: not a certificate in PEM"):
        user_security(certificates.folder / "user.token", None)
    assert user_security(None, None) is None


@pytest.mark.parametrize(("text", "said"), [
    ("", "must hold \\[\\[tokens\\]\\] tables"),
    ("tokens = 3", "must hold \\[\\[tokens\\]\\] tables"),
    ("[[tokens]", "not TOML"),
    ('[[tokens]]\nname = "a"', "must have name, sha256 and scopes"),
    ('[[tokens]]\nname = "a b"\nsha256 = ""\nscopes = ["infer"]', "token 1: name: must be"),
    ('[[tokens]]\nname = "a"\nsha256 = "plain-token"\nscopes = ["infer"]', "token 'a': sha256: must be 64"),
    (f'[[tokens]]\nname = "a"\nsha256 = "{"0" * 64}"\nscopes = []', "token 'a': scopes: must be some of infer, operate, join"),
    (f'[[tokens]]\nname = "a"\nsha256 = "{"0" * 64}"\nscopes = ["root"]', "token 'a': scopes: must be some of"),
    (f'[[tokens]]\nname = "a"\nsha256 = "{"0" * 64}"\nscopes = ["infer"]\n' * 2, "name 'a' stands there twice"),
])  # fmt: skip
def test_a_bad_file_of_tokens_is_refused_with_the_cure(text, said, tmp_path):
    path = tmp_path / "tokens.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=said):
        read_token_hashes("MOEDGE_BROKER_TOKENS_FILE", path)


def test_a_token_is_found_by_its_hash_alone(certificates):
    known = read_token_hashes("tokens_file", certificates.folder / "tokens.toml")
    for name in ("user", "operator", "join", "load"):
        token = (certificates.folder / f"{name}.token").read_text().strip()
        holder = holder_of(token, known)
        assert holder is not None
        assert (holder.name, holder.sha256) == (name, hash_of(token))
    assert holder_of("", known) is None
    assert holder_of(known[0].sha256, known) is None


def test_private_files_are_their_owners_alone(certificates):
    def mode(path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    assert mode(certificates.folder) == 0o700
    assert {name: mode(certificates.folder / name) for name in ("ca.key", "user.token", "operator.token")} == {
        "ca.key": 0o600, "user.token": 0o600, "operator.token": 0o600,
    }  # fmt: skip
    # Containers have another user; what is mounted into them is out of others' reach by its folder.
    assert mode(certificates.folder / "worker.key") == 0o644


@pytest.mark.parametrize("service", ["broker", "controller", "merger", "worker"])
def test_a_service_with_bad_papers_ends_with_one_line_and_status_2(certificates, service, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(expired(certificates, tmp_path / "made").folder, folder)
    needed = {"controller": ["--merger-address", "127.0.0.1:1"], "merger": ["--model", str(tmp_path)], "broker": [], "worker": []}
    tls = [word for kind in ("cert", "key") for word in (f"--tls-{kind}", str(folder / f"{service}.{'pem' if kind == 'cert' else 'key'}"))]
    tokens = ["--tokens-file", str(folder / "tokens.toml")] if service == "broker" else []
    command = [sys.executable, "-c", "from loadgen.cli.main import app; app()", "serve", service, *needed[service], *tls, *tokens]
    ended = subprocess.run([*command, "--tls-ca", str(folder / "ca.pem")], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2, ended.stderr
    assert ended.stdout == ""
    wanted = f"moedge: MOEDGE_{service.upper()}_TLS_CERT: {folder / f'{service}.pem'}: the certificate has expired"
    assert ended.stderr.startswith(wanted), ended.stderr
    assert len(ended.stderr.splitlines()) == 1
