"""Credentials that are given for a connection without TLS: one rule for etcd and the Kubernetes API. Pure.

    warning_about("http://192.0.2.1:2379", ["the password"]) -> text

Loopback addresses and Unix sockets do not leave the host, so they are no fault.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Sequence


def warning_about(url: str, credentials: Sequence[str]) -> str:
    """Return the warning; "" where there is nothing to warn of.

    Args:
        url: of an endpoint that is used without TLS, with or without ``http://``.
        credentials: what is given for it, in words: "the password", "the TLS files".
    """
    if not credentials or url.startswith("unix:") or _is_loopback(url):
        return ""
    what = " and ".join(credentials)
    verb = "are" if len(credentials) > 1 or what.endswith("s") else "is"
    danger = "whatever is sent there can be read and changed on the way, credentials too; use https://"
    return f"{url} is plain HTTP, although {what} {verb} given: {danger}"


def _is_loopback(url: str) -> bool:
    host = urlsplit(url if "://" in url else f"//{url}").hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
