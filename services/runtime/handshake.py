"""What TLS has to say about a peer that cannot be reached.

gRPC reports a wrong authority, an expired certificate and a plaintext server alike, as UNAVAILABLE.
"""

from __future__ import annotations

import re
import socket
import ssl

from services.runtime.security import ALPN, Role, Security, objection, role_name, self_check


def tls_trouble(target: str, peer: Role, security: Security | None, timeout_s: float) -> str:
    """Look at each address of a gRPC target; the first trouble with TLS, or "". Blocks, for each address up to `timeout_s`."""
    for host, port in _addresses(target):
        try:
            with socket.create_connection((host, port), timeout_s) as connection:
                why = _of_plaintext(connection) if security is None else _of_tls(connection, peer, security)
        except OSError:
            continue  # nobody listens there, or it went away: no matter of TLS
        if why:
            return f"TLS handshake with {peer} at {host}:{port}: {why}"
    return ""


def _addresses(target: str) -> list[tuple[str, int]]:
    bare = re.sub(r"^(ipv4|ipv6|dns):(//[^/]*/)?", "", target)
    found = []
    for address in bare.split(","):
        host, _, port = address.rpartition(":")
        if host and port.isdigit():
            found.append((host.strip("[]"), int(port)))
    return found


def _of_plaintext(connection: socket.socket) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # only whether it speaks TLS at all
    context.set_alpn_protocols(ALPN)
    try:
        context.wrap_socket(connection).close()
    except (ssl.SSLError, OSError):
        return ""
    return "it speaks TLS and was called in plaintext; give the stack's authority (moedge: --ca FILE; services: tls_cert, tls_key, tls_ca)"


def _of_tls(connection: socket.socket, peer: Role, security: Security) -> str:
    try:
        with security.client_context().wrap_socket(connection, server_hostname=role_name(peer)) as secured:
            # A gRPC server speaks first; one that refuses the certificate it was shown ends the connection instead.
            return "" if secured.recv(1) else _refused(security)
    except ssl.SSLCertVerificationError as error:
        return objection(error, peer)
    except ssl.SSLError as error:
        plaintext = "it speaks plaintext and was called over TLS; leave out the TLS options, or secure it too"
        return _refused(security) if "ALERT" in (error.reason or "") else plaintext
    except TimeoutError:
        return ""
    except OSError:
        return _refused(security)


def _refused(security: Security) -> str:
    if security.role is None:
        return "it asks for a certificate of the stack, which services have; users call the broker"
    if wrong := self_check(security, security.role):
        return f"it refuses our certificate: {wrong[1]}"
    return "it refuses our certificate; it may trust another authority"
