"""One request and one reply: what is packed is unpacked, and nothing else is taken for one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni_py import protocol
from cni_py.protocol import FrameError

NAMESPACES = (4, 4026531840, 4, 4026531841)
NAMES = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]))
KEYS = st.binary(min_size=1).filter(lambda key: b"\0" not in key and b"=" not in key)
VALUES = st.binary().filter(lambda value: b"\0" not in value)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, two = socket.socketpair()
    with one, two:
        one.settimeout(20)
        two.settimeout(20)
        yield one, two


def request(**changes: object) -> bytes:
    arguments = {"plugin": "bridge", "launcher": "/opt/cni/bin/bridge", "environ": [(b"A", b"1")], "stdin": b"{}"}
    return protocol.pack_request(**(arguments | {"namespaces": NAMESPACES, "descriptors": 2} | changes))  # type: ignore[arg-type]


@given(NAMES.filter(bool), NAMES, st.dictionaries(KEYS, VALUES), st.binary(), st.integers(0, 255))
def test_request_is_unpacked_as_it_was_packed(
    plugin: str, launcher: str, environ: dict[bytes, bytes], stdin: bytes, descriptors: int
) -> None:
    data = protocol.pack_request(plugin, launcher, environ.items(), stdin, NAMESPACES, descriptors)
    announced, head, body, namespaces = protocol.unpack_request_head(data[: protocol.REQUEST_HEAD])
    rest = data[protocol.REQUEST_HEAD :]
    assert (announced, namespaces) == (descriptors, NAMESPACES)
    assert (len(rest), rest[head:]) == (head + body, stdin)
    found = protocol.unpack_head(rest[:head])
    decoded = {key.decode(errors="surrogateescape"): value.decode(errors="surrogateescape") for key, value in environ.items()}
    assert found == (plugin, launcher, decoded)


def test_head_has_the_size_that_is_announced() -> None:
    assert len(request(environ=[], stdin=b"")) == protocol.REQUEST_HEAD + len(b"bridge\0/opt/cni/bin/bridge\0")
    assert len(protocol.pack_reply(protocol.BEGUN)) == protocol.REPLY_HEAD


@pytest.mark.parametrize("data", [bytes(48), b"GET / HTTP/1.1\r\n" * 3, b"CNI<" + bytes(44)])
def test_request_of_something_else(data: bytes) -> None:
    with pytest.raises(FrameError, match="not a request"):
        protocol.unpack_request_head(data)


def test_request_of_another_protocol() -> None:
    data = request()
    with pytest.raises(FrameError, match="protocol 9, this is 1"):
        protocol.unpack_request_head(data[:4] + b"\x09" + data[5:])


@pytest.mark.parametrize(
    ("head", "stdin"), [(protocol.MAX_HEAD + 1, 0), (0, protocol.MAX_STDIN + 1), (0xFFFFFFFF, 0), (0, 0xFFFFFFFF)]
)
def test_request_that_is_too_large(head: int, stdin: int) -> None:
    data = request()[:8] + head.to_bytes(4, "big") + stdin.to_bytes(4, "big") + bytes(32)
    with pytest.raises(FrameError, match="too large"):
        protocol.unpack_request_head(data)


@pytest.mark.parametrize("head", [b"", b"\0", b"bridge\0"])
def test_head_without_plugin_and_launcher(head: bytes) -> None:
    with pytest.raises(FrameError):
        protocol.unpack_head(head)


@given(st.sampled_from([protocol.BEGUN, protocol.REFUSED, protocol.DONE]), st.integers(0, 255), st.binary())
def test_reply_is_read_as_it_was_packed(kind: int, status: int, stdout: bytes) -> None:
    one, two = socket.socketpair()
    with one, two:
        one.sendall(protocol.pack_reply(kind, status, stdout))
        assert protocol.read_reply(two) == (kind, status, stdout)


def test_long_reply_comes_in_pieces(pair: tuple[socket.socket, socket.socket]) -> None:
    stdout = b"x" * protocol.MAX_STDOUT
    sender = threading.Thread(target=pair[0].sendall, args=(protocol.pack_reply(protocol.DONE, 0, stdout),))
    sender.start()
    assert protocol.read_reply(pair[1]) == (protocol.DONE, 0, stdout)
    sender.join()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"CNI<",
        protocol.pack_reply(protocol.DONE, 0, b"abc")[:-1],
        b"CNI>" + protocol.pack_reply(protocol.DONE)[4:],
        b"CNI<\x02" + protocol.pack_reply(protocol.DONE)[5:],
        protocol.pack_reply(protocol.DONE)[:12] + (protocol.MAX_STDOUT + 1).to_bytes(4, "big"),
    ],
    ids=["nothing", "half a head", "half", "a request", "another protocol", "too long"],
)
def test_what_is_no_reply(pair: tuple[socket.socket, socket.socket], data: bytes) -> None:
    pair[0].sendall(data)
    pair[0].shutdown(socket.SHUT_WR)
    with pytest.raises(FrameError):
        protocol.read_reply(pair[1])
