"""Who a process is and whom it trusts, when calls go over TLS: its role's certificate, the stack's authority, its token. Plain values.

Services prove their role to one another with certificates that the stack's own authority signed; users prove themselves to the broker
with a token. Reading and checking files happens here, once, before anything starts.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import grpc

from services.runtime.errors import SettingsError
from services.runtime.settings import ServiceSettings
from services.runtime.tokens import TokenHash, read_token, read_token_hashes

Role = Literal["broker", "worker", "controller", "merger"]
ROLES: tuple[Role, ...] = get_args(Role)
DOMAIN = "moedge.internal"
ALPN = ["h2"]

# OpenSSL's verify codes (x509_vfy.h), in our words.
_NOT_YET_VALID, _EXPIRED, _WRONG_NAME = 9, 10, 62


def role_name(role: str) -> str:
    """The DNS name in the certificate of a role: what peers check instead of an address, since addresses of edges change."""
    return f"{role}.{DOMAIN}"


@dataclass(frozen=True, slots=True)
class Security:
    """What a process shows and what it checks. Without a certificate it is a user's: it can call the broker only."""

    ca: bytes
    role: Role | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    files: tuple[Path, Path] | None = None  # where certificate and key came from
    token: str = field(default="", repr=False)  # sent with calls to the broker, to nobody else
    users: tuple[TokenHash, ...] = ()  # whom a broker lets in

    def server_credentials(self) -> grpc.ServerCredentials:
        """A broker asks users for a token, every other service asks its callers for a certificate of the stack."""
        assert self.certificate is not None
        assert self.key is not None
        with_certificates = self.role != "broker"
        pairs = [(self.key, self.certificate)]
        return grpc.ssl_server_credentials(pairs, self.ca if with_certificates else None, require_client_auth=with_certificates)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)

    def client_context(self) -> ssl.SSLContext:
        """As a client of the stack, outside gRPC: to find out what is wrong with a peer."""
        context = _trusting(self.ca, ssl.PROTOCOL_TLS_CLIENT)
        context.set_alpn_protocols(ALPN)
        if self.files is not None:
            _load_pair(context, self.files)
        return context


def read_security(
    settings: ServiceSettings, role: Role, *, tokens_file: Path | None = None, token_file: Path | None = None
) -> Security | None:
    """From the service's settings, checked; None where they ask for no TLS. `SettingsError` names the variable and the cure."""
    if settings.tls_cert is None or settings.tls_key is None or settings.tls_ca is None:
        for name, path in (("tokens_file", tokens_file), ("join_token_file", token_file)):
            if path is not None:
                raise SettingsError(f"{settings.variable(name)}: tokens go over TLS only; set tls_cert, tls_key and tls_ca too")
        return None
    if role == "broker" and tokens_file is None:
        raise SettingsError(f"{settings.variable('tokens_file')}: missing; with TLS the broker asks users for tokens, name their file")
    security = Security(
        ca=_read(settings, "tls_ca", settings.tls_ca),
        role=role,
        certificate=_read(settings, "tls_cert", settings.tls_cert),
        key=_read(settings, "tls_key", settings.tls_key),
        files=(settings.tls_cert.expanduser(), settings.tls_key.expanduser()),
        token=read_token(settings.variable("join_token_file"), token_file) if token_file else "",
        users=read_token_hashes(settings.variable("tokens_file"), tokens_file) if tokens_file else (),
    )
    if wrong := self_check(security, role):
        name, why = wrong
        raise SettingsError(f"{settings.variable(name)}: {getattr(settings, name)}: {why}")
    return security


def user_security(ca: Path | None, token_file: Path | None) -> Security | None:
    """A user's, from the options of a command; None without any."""
    if ca is None and token_file is None:
        return None
    if ca is None:
        raise SettingsError("--token-file: a token goes over TLS only; give --ca FILE, the authority of the stack, too")
    pem = _bytes_of("--ca", ca)
    try:
        _trusting(pem, ssl.PROTOCOL_TLS_CLIENT)
    except (ssl.SSLError, ValueError) as error:
        raise SettingsError(f"--ca: {ca}: not a certificate in PEM") from error
    return Security(ca=pem, token=read_token("--token-file", token_file) if token_file else "")


def _read(settings: ServiceSettings, name: str, path: Path) -> bytes:
    return _bytes_of(settings.variable(name), path)


def _bytes_of(name: str, path: Path) -> bytes:
    try:
        return path.expanduser().read_bytes()
    except OSError as error:
        raise SettingsError(f"{name}: {path}: cannot be read ({error.strerror or error})") from error


def self_check(security: Security, role: Role) -> tuple[str, str] | None:
    """A handshake with itself in memory, as server and as client: what a peer would object to, and which setting is to blame."""
    assert security.files is not None
    try:
        client, server = _trusting(security.ca, ssl.PROTOCOL_TLS_CLIENT), _trusting(security.ca, ssl.PROTOCOL_TLS_SERVER)
    except (ssl.SSLError, ValueError):
        return "tls_ca", "not a certificate in PEM"
    try:
        for context in (client, server):
            _load_pair(context, security.files)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            return "tls_key", "is not the key of tls_cert"
        return _unreadable(security)
    return _refused(client, server, role)


def _unreadable(security: Security) -> tuple[str, str]:
    try:
        ssl.PEM_cert_to_DER_cert((security.certificate or b"").decode("ascii"))
    except ValueError:
        return "tls_cert", "not a certificate in PEM"
    return "tls_key", "not an unencrypted private key in PEM"


def _refused(client: ssl.SSLContext, server: ssl.SSLContext, role: Role) -> tuple[str, str] | None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(to_client, to_server, server_hostname=role_name(role)),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as error:
                return "tls_cert", objection(error, role)
            except ssl.SSLError as error:
                return "tls_cert", str(error.reason or error)
    return None


def objection(error: ssl.SSLCertVerificationError, role: str) -> str:
    """Why a certificate is refused."""
    said: Mapping[int, str] = {
        _NOT_YET_VALID: "the certificate is not valid yet (or the clock is wrong); make one with `moedge certs`",
        _EXPIRED: "the certificate has expired; make a new one with `moedge certs --renew`",
        _WRONG_NAME: f"the certificate is not for {role_name(role)}, but for another role or host",
    }
    return said.get(error.verify_code, f"the certificate is not signed by the authority given as CA ({error.verify_message})")


def _trusting(ca: bytes, protocol: int) -> ssl.SSLContext:
    """Trusts this authority and no other; asks the other end for a certificate. Not a certificate: `ssl.SSLError` or `ValueError`."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=ca.decode("ascii"))
    return context


def _load_pair(context: ssl.SSLContext, files: tuple[Path, Path]) -> None:
    # Without a password an encrypted key would ask for one on the terminal.
    context.load_cert_chain(*files, password="")
