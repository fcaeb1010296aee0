"""Bearer tokens of users: files with one token, files with the hashes of those that a broker lets in, and the comparison.

A broker never holds a token, only its hash: what it logs, exports or dumps cannot give one away.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.runtime.errors import SettingsError

SCOPES = ("infer", "operate", "join")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{16,4096}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class TokenHash:
    """One token as the broker knows it."""

    name: str
    sha256: str
    scopes: frozenset[str]


def hash_of(token: str) -> str:
    """Tokens are long and random, so a plain hash cannot be guessed back."""
    return hashlib.sha256(token.encode()).hexdigest()


def holder_of(token: str, known: Sequence[TokenHash]) -> TokenHash | None:
    """Whose token it is. Looks at every hash, whichever matches, so that the time taken says nothing."""
    given, found = hash_of(token), None
    for entry in known:
        if hmac.compare_digest(given, entry.sha256):
            found = entry
    return found


def read_token(name: str, path: Path) -> str:
    """The token in a file; `name` is the setting or option that named it."""
    token = _text(name, path).strip()
    if not _TOKEN.fullmatch(token):
        raise SettingsError(f"{name}: {path}: must hold one token of 16 or more letters, digits and -._~+/=, on one line")
    return token


def read_token_hashes(name: str, path: Path) -> tuple[TokenHash, ...]:
    """A TOML file of [[tokens]] tables with name, sha256 and scopes."""
    try:
        document = tomllib.loads(_text(name, path))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{name}: {path}: not TOML ({error})") from error
    tables = document.get("tokens")
    if not isinstance(tables, list) or not tables or set(document) != {"tokens"}:
        raise SettingsError(f"{name}: {path}: must hold [[tokens]] tables and nothing else; `moedge certs` writes such a file")
    entries = tuple(_entry(f"{name}: {path}", n, table) for n, table in enumerate(tables))
    for what, values in (("name", [entry.name for entry in entries]), ("sha256", [entry.sha256 for entry in entries])):
        if repeated := _repeated(values):
            raise SettingsError(f"{name}: {path}: {what} {repeated!r} stands there twice")
    return entries


def _entry(where: str, number: int, table: Any) -> TokenHash:
    if not isinstance(table, dict) or set(table) != {"name", "sha256", "scopes"}:
        raise SettingsError(f"{where}: token {number + 1}: must have name, sha256 and scopes, and nothing else")
    label, sha256, scopes = table["name"], table["sha256"], table["scopes"]
    if not isinstance(label, str) or not _NAME.fullmatch(label):
        raise SettingsError(f"{where}: token {number + 1}: name: must be letters, digits, dots, dashes, underscores")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise SettingsError(f"{where}: token {label!r}: sha256: must be 64 lower-case hex digits: printf %s TOKEN | sha256sum")
    if not isinstance(scopes, list) or not scopes or not all(scope in SCOPES for scope in scopes):
        raise SettingsError(f"{where}: token {label!r}: scopes: must be some of {', '.join(SCOPES)}")
    return TokenHash(label, sha256, frozenset(scopes))


def _repeated(values: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def _text(name: str, path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{name}: {path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{name}: {path}: not text") from error
