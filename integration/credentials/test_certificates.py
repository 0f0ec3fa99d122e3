"""flanneld/certificates.py: files that are replaced, and the dates of what is in them."""

from __future__ import annotations

import base64
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cni_py.datastore.etcd import TlsFiles
from cni_py.datastore.tls import stamp, what_is_invalid
from cni_py.errors import InvalidConfig
from support import pki

NOTHING = ("", b"")


def certificate(directory: Path, begins: datetime, ends: datetime) -> bytes:
    """Signed by its own key, as short as openssl makes it."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key"]
    pki.openssl(directory, "req", *key, "-subj", "/CN=x", "-out", "csr")
    pki.sign(directory, begins, ends, "crt", "-selfsign", "-in", "csr", "-keyfile", "key")
    return (directory / "crt").read_bytes()


def around_now(before: int, after: int) -> tuple[datetime, datetime]:
    now = datetime.now(UTC)
    return now + timedelta(days=before), now + timedelta(days=after)


@pytest.mark.parametrize("years", [0, 30])
def test_valid_ones_say_nothing(tmp_path: Path, years: int) -> None:
    """Dates after 2049 have a year with four digits."""
    pem = certificate(tmp_path, *around_now(-1, 1 + 365 * years))
    assert what_is_invalid(("a", pem), ("b", pem)) == what_is_invalid(NOTHING, NOTHING) == ""


def test_expired_and_not_yet_valid(tmp_path: Path) -> None:
    old, new = certificate(tmp_path, *around_now(-2, -1)), certificate(tmp_path, *around_now(1, 2))
    good = certificate(tmp_path, *around_now(-1, 1))
    ended, begins = datetime.now(UTC) - timedelta(days=1), datetime.now(UTC) + timedelta(days=1)
    said = what_is_invalid(("/x/client.crt", old), NOTHING)
    assert said.startswith(f'our client certificate "/x/client.crt" has expired, on {ended:%Y-%m-%d %H:}')
    assert said.endswith(" UTC; put a new one there: it is read without a restart")
    assert f"is not valid before {begins:%Y-%m-%d %H:}" in what_is_invalid(("a", new), NOTHING)
    assert "has expired" in what_is_invalid(("a", good + old), NOTHING), "a chain is as good as its worst link"
    assert what_is_invalid(NOTHING, ("ca", old)).startswith('the CA certificate "ca" has expired')
    assert what_is_invalid(NOTHING, ("ca", old + good)) == "", "one authority is enough"


@pytest.mark.parametrize("der", [b"", b"\x30", b"\x30\x03\x30\x01", b"\x30\x84\xff", b"\x30\x80" * 9, b"nonsense"])
def test_what_is_no_certificate_is_for_openssl_to_refuse(der: bytes) -> None:

    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(der) + b"\n-----END CERTIFICATE-----\n"
    assert what_is_invalid(("a", pem), ("b", pem)) == ""


def test_stamp_detects_every_way_to_replace_a_file(tmp_path: Path) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    seen = {stamp([str(file)])}
    file.write_text("one")
    seen.add(stamp([str(file)]))
    os.utime(file, ns=(0, 0))
    seen.add(stamp([str(file)]))
    other.write_text("two")
    os.utime(other, ns=(0, 0))
    other.replace(file)
    seen.add(stamp([str(file)]))
    file.unlink()
    file.symlink_to("nowhere")
    assert len(seen) == 4
    assert stamp([str(file)]) == (None,)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("ca", None, 'the CA certificate "{}": No such file or directory'),
        ("ca", b"x", 'the CA certificate "{}": it is no PEM file of one: '),
        ("crt", None, 'the client certificate "{}": No such file or directory'),
        ("crt", b"\xff", 'the client certificate "{}": it is no PEM file of one: '),
        ("key", None, 'the key "{}": No such file or directory'),
        ("key", b"x", 'the key "{}": it is no PEM file of one: '),
        ("key", "other", 'the key "{}": it does not belong to the certificate "'),
    ],
)
def test_file_that_cannot_be_used_is_named(tmp_path: Path, file: str, content: bytes | str | None, words: str) -> None:
    certificate(tmp_path, *around_now(-1, 1))
    other = (tmp_path / "key").read_bytes()
    (tmp_path / "ca").write_bytes(certificate(tmp_path, *around_now(-1, 1)))
    files = TlsFiles(*(str(tmp_path / name) for name in ("ca", "crt", "key")))
    assert files.read()
    if content is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(content if isinstance(content, bytes) else other)
    with pytest.raises(InvalidConfig) as caught:
        files.read()
    assert str(caught.value).startswith("etcd's TLS files cannot be used: " + words.format(tmp_path / file))
    assert files.fault() == str(caught.value)
