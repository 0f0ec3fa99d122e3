"""Find out why an endpoint with TLS cannot be used: gRPC reports a missing client certificate as a broken stream.

Asked only after a call has failed. OpenSSL's own words name the reason; which option to set follows from that.
"""

from __future__ import annotations

import socket
import ssl

SECONDS = 1.0
_CERTIFICATE_ALERTS = ("CERTIFICATE_REQUIRED", "BAD_CERTIFICATE", "UNKNOWN_CA", "CERTIFICATE_UNKNOWN", "HANDSHAKE_FAILURE")


def reason(endpoint: str, ca_path: str, cert_path: str, key_path: str, *, is_tls: bool) -> str:
    """Return why TLS with this endpoint fails and which option to set; "" if it does not, or the reason is another one.

    Args:
        is_tls: the client used TLS; otherwise the question is whether the server does.
    """
    host, _, port = endpoint.rstrip("/").rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        return ""
    address = host.strip("[]"), int(port)
    if not is_tls:
        return f"{host}:{port} speaks TLS: write https://{host}:{port}" if _handshake(address, _blind()) is not None else ""
    context = _context(ca_path, cert_path, key_path)
    error = _handshake(address, context) if context else True
    if error is True:
        return ""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _not_verified(error, endpoint, ca_path)
    if error and any(alert in (error.reason or "") for alert in _CERTIFICATE_ALERTS):
        return _not_accepted(endpoint, cert_path)
    return f"{endpoint} does not speak TLS: write http://{host}:{port}" if _speaks_http(address) else ""


def _context(ca_path: str, cert_path: str, key_path: str) -> ssl.SSLContext | None:
    """Return OpenSSL's context with these files; None if they cannot be used, which TlsFiles has reported."""
    try:
        context = ssl.create_default_context(cafile=ca_path or None)
        if cert_path or key_path:
            context.load_cert_chain(cert_path, key_path or None, password="")
    except OSError:
        return None
    return context


def _not_accepted(endpoint: str, cert_path: str) -> str:
    if cert_path:
        return f'{endpoint} does not accept the client certificate "{cert_path}": its CA did not sign it (-etcd-certfile)'
    return f"{endpoint} requires a client certificate: set -etcd-certfile and -etcd-keyfile"


def _not_verified(error: ssl.SSLCertVerificationError, endpoint: str, ca_path: str) -> str:
    words = error.verify_message.rstrip(".")
    if "expired" in words or "not yet valid" in words:
        return f"the server certificate of {endpoint} cannot be used: {words}"
    if "match" in words.lower():
        return f"the server certificate of {endpoint} has another name: {words}"
    if not ca_path:
        return f"the server certificate of {endpoint} is of no public CA: set -etcd-cafile"
    return f'the server certificate of {endpoint} was not signed by "{ca_path}": -etcd-cafile names another CA ({words})'


def _handshake(address: tuple[str, int], context: ssl.SSLContext) -> ssl.SSLError | bool | None:
    """Return True after a handshake, the error of one that failed, None if there was none: no TLS, or no reply."""
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection(address, SECONDS) as sock, context.wrap_socket(sock, server_hostname=address[0]) as tls:
            tls.settimeout(SECONDS / 2)
            try:
                tls.recv(1)  # TLS 1.3: the server rejects a certificate after the handshake
            except TimeoutError:
                pass
            return True
    except ssl.SSLError as error:
        if context.verify_mode == ssl.CERT_NONE and "ALERT" not in (error.reason or ""):
            return None  # the reply was no TLS
        return error
    except OSError:
        return None


def _speaks_http(address: tuple[str, int]) -> bool:
    """Return whether the server replies to plain HTTP. (Go's reply to that on a port with TLS has status 400.)"""
    try:
        with socket.create_connection(address, SECONDS) as sock:
            sock.settimeout(SECONDS)
            sock.sendall(b"GET /version HTTP/1.0\r\n\r\n")
            return sock.recv(64).split(b" ")[1:2] == [b"200"]
    except OSError:
        return False


def _blind() -> ssl.SSLContext:
    """Return a context that accepts any certificate: it sends nothing, and only finds out whether TLS is spoken."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
