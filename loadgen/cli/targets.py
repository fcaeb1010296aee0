"""Addresses of brokers as users write them: HOST:PORT, or HOST:FIRST-LAST for a range of which some ports are brokers'.

An engine that publishes a range gives each container that starts the next free port of it, so the one port of yesterday may be another
today; of a range the first port that answers is taken.
"""

from __future__ import annotations

import re
import socket

from loadgen.cli.console import CommandError

PROBE_S = 0.5
LONGEST_RANGE = 100
_TARGET = re.compile(r"(?P<host>\[[^\]]+\]|[^:]+):(?P<first>\d{1,5})(?:-(?P<last>\d{1,5}))?")


def address_of(target: str) -> str:
    """HOST:PORT of the target; of a range, the first port where something listens (its first port where nothing does)."""
    match = _TARGET.fullmatch(target)
    if match is None:
        raise CommandError(f"target: {target!r} is not HOST:PORT, such as 127.0.0.1:50051, or a range such as 127.0.0.1:50051-50059")
    host, first, last = match["host"], int(match["first"]), int(match["last"] or match["first"])
    if not 0 < first <= last <= 65535 or last - first >= LONGEST_RANGE:
        raise CommandError(f"target: {target!r}: ports go up from 1 to 65535, at most {LONGEST_RANGE} of them")
    if first == last:
        return f"{host}:{first}"
    port = next((port for port in range(first, last + 1) if _listens(host.strip("[]"), port)), first)
    return f"{host}:{port}"


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=PROBE_S):
            return True
    except OSError:
        return False
