"""Makes what a secured stack needs: an authority of its own, a certificate for each role, tokens for users. Writes files, starts nothing.

The folder is for its owner alone (0700). Within it the authority's key and users' tokens are 0600 as well; what is mounted into
containers, whose user is another one, is 0644: a mount needs no way through the folder.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.runtime.security import ROLES, role_name
from services.runtime.tokens import hash_of

CA_DAYS = 3650
SKEW = timedelta(hours=1)  # clocks of other machines may be behind
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
TOKENS: Mapping[str, tuple[str, ...]] = {"user": ("infer",), "operator": ("infer", "operate"), "join": ("join",), "load": ("infer",)}
MOUNTED_TOKENS = ("join", "load")
PRIVATE, MOUNTED = 0o600, 0o644


class CertificatesError(Exception):
    """What stands in the way; the message names the file and the cure."""


@dataclass(frozen=True, slots=True)
class Authority:
    """Signs certificates. Its key stays on the machine that makes them."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, in PEM."""

    certificate: bytes
    key: bytes


def make_authority(now: datetime, days: int = CA_DAYS) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "moedge authority")])
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = _dated(name, name, key.public_key(), now, days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).add_extension(usage, critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return Authority(builder.sign(key, hashes.SHA256()), key)


def make_pair(authority: Authority, names: Sequence[str], now: datetime, days: int) -> Pair:
    """For these DNS names and IP addresses, the first of which is the subject; good for both ends of a call."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = _dated(subject, authority.certificate.subject, key.public_key(), now, days)
    builder = builder.add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    both_ends = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
    builder = builder.add_extension(both_ends, critical=False).add_extension(issuer_key, critical=False)
    signed = builder.sign(authority.key, hashes.SHA256())
    return Pair(signed.public_bytes(serialization.Encoding.PEM), _pem(key))


def write_stack(out: Path, now: datetime, days: int, broker_names: Sequence[str] = ()) -> list[Path]:
    """Everything for a new stack into a new or empty folder; the files written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CertificatesError(f"{out}: exists and is not an empty folder; name another, or --renew the certificates in it")
    out.mkdir(parents=True, exist_ok=True)
    out.chmod(0o700)
    authority = make_authority(now)
    tokens = {name: secrets.token_urlsafe(32) for name in TOKENS}
    written = [_write(out / "ca.key", _pem(authority.key), PRIVATE), _write(out / "ca.pem", authority.pem, MOUNTED)]
    written += _write_pairs(out, authority, now, days, broker_names)
    for name, token in tokens.items():
        written.append(_write(out / f"{name}.token", f"{token}\n".encode(), MOUNTED if name in MOUNTED_TOKENS else PRIVATE))
    written.append(_write(out / "tokens.toml", _hash_file(tokens).encode(), MOUNTED))
    return written


def renew(out: Path, now: datetime, days: int, broker_names: Sequence[str] = ()) -> list[Path]:
    """New certificates of all roles from the authority in the folder; authority and tokens stay. Names given before are kept."""
    authority = read_authority(out)
    left = authority.certificate.not_valid_after_utc - now
    if left < timedelta(days=days):
        raise CertificatesError(f"{out / 'ca.pem'}: ends in {left.days} days; ask for fewer --days, or make a new stack in a new folder")
    kept = _names_of(out / "broker.pem") if (out / "broker.pem").exists() else []
    names = [name for name in dict.fromkeys([*kept, *broker_names]) if name not in (role_name("broker"), *LOCAL_NAMES)]
    return _write_pairs(out, authority, now, days, names)


def read_authority(out: Path) -> Authority:
    try:
        certificate = x509.load_pem_x509_certificate((out / "ca.pem").read_bytes())
        key = serialization.load_pem_private_key((out / "ca.key").read_bytes(), password=None)
    except OSError as error:
        raise CertificatesError(f"{error.filename}: cannot be read ({error.strerror}); --renew needs the authority made before") from error
    except ValueError as error:
        raise CertificatesError(f"{out}: ca.pem or ca.key is damaged ({error})") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificatesError(f"{out / 'ca.key'}: not a key that this command made")
    return Authority(certificate, key)


def names_of_role(role: str, extra: Sequence[str] = ()) -> list[str]:
    """Users reach the broker by an address; the other services are reached by their role only."""
    return [role_name(role), *LOCAL_NAMES, *extra] if role == "broker" else [role_name(role)]


def _write_pairs(out: Path, authority: Authority, now: datetime, days: int, broker_names: Sequence[str]) -> list[Path]:
    written = []
    for role in ROLES:
        pair = make_pair(authority, names_of_role(role, broker_names), now, days)
        written += [_write(out / f"{role}.pem", pair.certificate, MOUNTED), _write(out / f"{role}.key", pair.key, MOUNTED)]
    return written


def _dated(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - SKEW).not_valid_after(now + timedelta(days=days))


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as error:
        raise CertificatesError(f"name: {name!r} is neither a host name nor an IP address") from error


def _names_of(certificate: Path) -> list[str]:
    names = x509.load_pem_x509_certificate(certificate.read_bytes()).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [*names.get_values_for_type(x509.DNSName), *(str(address) for address in names.get_values_for_type(x509.IPAddress))]


def _hash_file(tokens: Mapping[str, str]) -> str:
    tables = ["# Whom the broker lets in: hashes only. To add one: openssl rand -hex 32 >NAME.token; printf %s TOKEN | sha256sum\n"]
    for name, token in tokens.items():
        scopes = ", ".join(f'"{scope}"' for scope in TOKENS[name])
        tables.append(f'[[tokens]]\nname = "{name}"\nsha256 = "{hash_of(token)}"\nscopes = [{scopes}]\n')
    return "\n".join(tables)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _write(path: Path, content: bytes, mode: int) -> Path:
    """Whole or not at all, and never readable by more people than it will be."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE), "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), mode)
    beside.replace(path)
    return path
