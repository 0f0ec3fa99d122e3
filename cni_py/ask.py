"""The client's side of ``frame.py``: hand a call to the agent and wait for its answer.

``client.py`` loads it only where a plugin has work to do; it needs ``posix`` and ``_socket``, no more.
"""

import _socket
import posix
import sys

from cni_py import frame
from cni_py.environment import NESTED

STDERR = 2


class BrokeOff(Exception):
    """The agent had begun and did not come to the end."""


def agent(plugin: str, launcher: str, netns: str, stdin: bytes) -> tuple[int, bytes] | None:
    """Exit status and standard output; None where there is no agent or it refuses. Raises: BrokeOff.

    ``netns``: the sandbox, "" where the call has none.
    """
    if NESTED.encode() in posix.environ:
        return None
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    if sock.fileno() <= STDERR:  # we were started without one of the standard descriptors
        return None
    sock.settimeout(frame.REQUEST_SECONDS)
    try:
        sock.connect(frame.SOCKET_PATH)
        _send_request(sock, plugin, launcher, netns, stdin)
        kind, status, reply = _first_reply(sock)
    except (OSError, frame.FrameError):
        return None
    if kind != frame.BEGUN:
        return (status, reply) if kind == frame.DONE else None
    sock.settimeout(None)
    try:
        return frame.read_reply(sock)[1:]
    except (OSError, frame.FrameError) as error:
        raise BrokeOff(str(error)) from error


def _send_request(sock: _socket.socket, plugin: str, launcher: str, netns: str, stdin: bytes) -> None:
    """Raises: OSError, also where standard error or the sandbox cannot be handed over: then we work alone."""
    net, mount = posix.stat("/proc/self/ns/net"), posix.stat("/proc/self/ns/mnt")
    descriptors = [STDERR]
    if netns:
        try:
            descriptors.append(posix.open(netns, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK))
        except OSError:  # gone: for DEL that is no error, and for the others the agent says so
            pass
    namespaces = net.st_dev, net.st_ino, mount.st_dev, mount.st_ino
    request = frame.pack_request(plugin, launcher, posix.environ.items(), stdin, namespaces, len(descriptors))
    rights = b"".join([fd.to_bytes(4, sys.byteorder) for fd in descriptors])
    sent = sock.sendmsg([request], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
    if sent < len(request):  # else the agent has it all, and may have answered and left by now
        sock.sendall(request[sent:])


def _first_reply(sock: _socket.socket) -> tuple[int, int, bytes]:
    """BEGUN, REFUSED or DONE; an agent that does not answer in time is kept from beginning. Raises: FrameError, OSError."""
    sock.settimeout(frame.BEGIN_SECONDS)
    try:
        return frame.read_reply(sock)
    except TimeoutError:
        pass
    sock.shutdown(_socket.SHUT_RD)  # from here on it cannot send BEGUN any more, and without that it does not begin
    reply = frame.read_reply(sock)  # the end; or else it had begun just before: its work ends before we do it again
    _wait_until_closed(sock)
    return reply


def _wait_until_closed(sock: _socket.socket) -> None:
    from select import poll

    waiting = poll()
    waiting.register(sock, 0)  # an end of the other side is always told
    waiting.poll()
