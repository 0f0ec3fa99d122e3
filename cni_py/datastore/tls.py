"""TLS files as they are on disk: whether they were replaced, and whether what is in them is valid today.

Only for deciding when to read them again, and for the log: trust is decided by OpenSSL. Python's ssl returns the
dates of a peer's certificate but not those of one in a file, so they are read from its DER here.

Source: RFC 5280 section 4.1 (Certificate, Validity); X.690 (DER).
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

Stamp = tuple[tuple[int, int, int] | None, ...]
WHAT_TO_DO = "put a new one there: it is read without a restart"
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)
_VERSION = 0xA0  # of a certificate, left out where it is 1
_UTC_TIME = 0x17  # two digits for the year; the other form has four


def stamp(paths: Sequence[str]) -> Stamp:
    """Another one when a file was written, replaced or removed."""
    return tuple(_stamp(path) for path in paths)


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def what_is_invalid(ours: tuple[str, bytes], authority: tuple[str, bytes]) -> str:
    """Return which of them cannot be used today, since when and what to do; "" where both can. Each: its name, and the PEM.

    All certificates of our chain must be valid; of several authorities, as while one is replaced, one.
    """
    (our_name, our_pem), (authority_name, authority_pem) = ours, authority
    of_ours, of_authorities = _faults(our_pem), _faults(authority_pem)
    found = [f'our client certificate "{our_name}" {fault}' for fault in of_ours if fault]
    if of_authorities and all(of_authorities):
        found.append(f'the CA certificate "{authority_name}" {of_authorities[-1]}')
    return "; ".join([*found, WHAT_TO_DO]) if found else ""


def validity(pem: bytes) -> list[tuple[datetime, datetime]]:
    """Return begin and end of each certificate whose dates can be read, in the order of the file."""
    found = []
    for text in _PEM.findall(pem):
        try:
            found.append(_validity(base64.b64decode(text)))
        except (ValueError, IndexError):
            continue
    return found


def _faults(pem: bytes) -> list[str]:
    """Return for each certificate "" where its dates are good or cannot be read."""
    now = datetime.now(UTC)
    return [_fault(base64.b64decode(text), now) for text in _PEM.findall(pem)]


def _fault(der: bytes, now: datetime) -> str:
    try:
        begins, ends = _validity(der)
    except (ValueError, IndexError):
        return ""
    if now > ends:
        return f"has expired, on {ends:%Y-%m-%d %H:%M:%S} UTC"
    if now < begins:
        return f"is not valid before {begins:%Y-%m-%d %H:%M:%S} UTC (is this machine's clock right?)"
    return ""


def _validity(der: bytes) -> tuple[datetime, datetime]:
    """Raises: ValueError, IndexError."""
    (_, certificate), *_ = _elements(der)
    (_, signed), *_ = _elements(certificate)
    _number, _algorithm, _issuer, validity, *_ = (content for tag, content in _elements(signed) if tag != _VERSION)
    begins, ends = (_time(tag, content.decode("ascii")) for tag, content in _elements(validity))
    return begins, ends


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of elements, one after the other. Raises: IndexError."""
    at = 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:  # so many bytes of length follow
            size = length & 0x7F
            length, at = int.from_bytes(der[at : at + size]), at + size
        yield tag, der[at : at + length]
        at += length


def _time(tag: int, text: str) -> datetime:
    """Raises: ValueError."""
    if tag == _UTC_TIME:
        text = ("20" if text < "50" else "19") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
