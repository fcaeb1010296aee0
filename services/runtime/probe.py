"""Asks one server's `grpc.health.v1` whether it is ready, for a container's health check: exit 0 when SERVING. Imports little.

`python -m services.runtime.probe [HOST:PORT]`; without an address, the port that `MOEDGE_PORT` gives on this machine. Where the service
speaks TLS (`MOEDGE_TLS_CERT`, `_KEY`, `_CA`), so does the probe, with the service's own certificate.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 3.0


def is_serving(address: str, timeout_s: float = TIMEOUT_S) -> tuple[bool, str]:
    """Whether the server at `address` says SERVING, and what it said."""
    with _channel(address, os.environ) as to_server:
        try:
            answer = health_pb2_grpc.HealthStub(to_server).Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.RpcError as error:
            return False, f"{error.code().name}: {error.details()}"
    return answer.status == health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def _channel(address: str, environ: Mapping[str, str]) -> grpc.Channel:
    paths = [environ.get(f"MOEDGE_TLS_{name}", "") for name in ("CA", "KEY", "CERT")]
    if not all(paths):
        return grpc.insecure_channel(address)
    ca, key, certificate = (Path(path).read_bytes() for path in paths)
    options = [("grpc.ssl_target_name_override", _own_name(certificate))]
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, certificate), options)


def _own_name(certificate: bytes) -> str:
    """The name of the role in a certificate, which stands there as plain ASCII: reading it properly would cost an import of 100 ms."""
    import ssl

    own, end, _ = certificate.decode("ascii").strip().partition(ssl.PEM_FOOTER)  # others of its chain may follow
    found = re.search(rb"[a-z]+\.moedge\.internal", ssl.PEM_cert_to_DER_cert(own + end))
    return found.group().decode("ascii") if found else "localhost"


def main() -> None:
    address = sys.argv[1] if len(sys.argv) > 1 else f"127.0.0.1:{os.environ.get('MOEDGE_PORT', '50051')}"
    serving, said = is_serving(address)
    print(f"{address} {said}")
    sys.exit(0 if serving else 1)


if __name__ == "__main__":
    main()
