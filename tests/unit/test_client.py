"""The client and an agent that is slow: what may be done again, and when. With sockets, without an agent."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from cni_py import client, protocol


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[socket.socket, socket.socket]]:
    """The client's end, and the agent's."""
    monkeypatch.setattr(protocol, "BEGIN_SECONDS", 0.05)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_agent_begins_in_time(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[1].sendall(protocol.pack_reply(protocol.BEGUN))
    assert protocol._first_reply(pair[0]) == (protocol.BEGUN, 0, b"")


def test_agent_that_is_too_slow_cannot_begin_any_more(pair: tuple[socket.socket, socket.socket]) -> None:
    """The agent does nothing that the client then does itself."""
    with pytest.raises(protocol.FrameError):
        protocol._first_reply(pair[0])
    with pytest.raises(BrokenPipeError):
        pair[1].sendall(protocol.pack_reply(protocol.BEGUN))


def test_agent_that_began_in_the_last_moment_is_waited_for(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply is lost; but the agent is done before the client reverts it."""
    read = protocol.read_reply
    began: list[float] = []

    def last_moment(sock: socket.socket) -> tuple[int, int, bytes]:
        try:
            return read(sock)
        except TimeoutError:
            pair[1].sendall(protocol.pack_reply(protocol.BEGUN))
            raise

    def work() -> None:
        time.sleep(0.3)
        began.append(time.monotonic())
        with pytest.raises(BrokenPipeError):
            pair[1].sendall(protocol.pack_reply(protocol.DONE))
        pair[1].close()

    monkeypatch.setattr(protocol, "read_reply", last_moment)
    agent = threading.Thread(target=work)
    agent.start()
    assert protocol._first_reply(pair[0])[0] == protocol.BEGUN
    assert time.monotonic() >= began[0]
    agent.join()
    with pytest.raises(protocol.FrameError):
        read(pair[0])


@pytest.mark.parametrize(("failed", "words"), [(0, "it was undone"), (1, "DEL is required")])
def test_add_that_broke_off_says_what_is_left(monkeypatch: pytest.MonkeyPatch, failed: int, words: str) -> None:
    verbs = []

    def work_alone(plugin: str, launcher: str, environ: dict[str, str], stdin: bytes) -> tuple[int, bytes]:
        verbs.append(environ["CNI_COMMAND"])
        return failed, b""

    monkeypatch.setattr(client, "_work_alone", work_alone)
    status, reply = client._undo_add("bridge", "/bridge", {"CNI_COMMAND": "ADD"}, b"{}")
    assert (status, verbs) == (1, ["DEL"])
    assert b'"code":11' in reply
    assert words.encode() in reply
