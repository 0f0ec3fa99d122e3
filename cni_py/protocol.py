"""Protocol between ``client.py`` and the agent, one request and one reply: the contract, and the client's side of it.

The client connects to ``/run/cni-py/agent.sock`` and sends one message. Its first ``sendmsg`` carries
file descriptors (SCM_RIGHTS): standard error, and the sandbox's namespace if CNI_NETNS names one.
Everything is big-endian::

    request   4  magic "CNI>"      1  PROTOCOL     1  number of descriptors    2  zero
              4  bytes of the head  4  bytes of standard input
              4 × 8  device and inode of the caller's network and mount namespace
              head: plugin NUL launcher NUL, then KEY=VALUE NUL for each variable of the environment
              standard input
    reply     4  magic "CNI<"      1  PROTOCOL     1  kind
              2  zero              4  exit status   4  bytes of standard output
              standard output

The agent first sends a reply of kind BEGUN, just before it starts, or REFUSED, and then does
not start: another protocol version, other namespaces than its own, an agent that is shutting down. Only then, or
if the connection breaks before BEGUN, may the client do the work itself. DONE carries the result.

A third-party plugin that ours executes may execute one of our plugins in turn (flannel, ptp, host-local). It
finds ``CNI_PY_NESTED`` in its environment and works alone: it would wait for its own caller's end.

A request or reply is abandoned if its pieces do not arrive within ``REQUEST_SECONDS``, and an agent that has not begun
after ``BEGIN_SECONDS`` too; the work itself has no time limit.

The client loads this only if a plugin has work to do: one module, because each takes a tenth of a millisecond.
"""

import posix
from _socket import AF_UNIX, SCM_RIGHTS, SHUT_RD, SO_PEERCRED, SOCK_CLOEXEC, SOCK_STREAM, SOL_SOCKET, socket
from sys import byteorder

from cni_py.spec.environment import NESTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

SOCKET_PATH = "/run/cni-py/agent.sock"
PROTOCOL = 1
REQUEST_MAGIC, REPLY_MAGIC = b"CNI>", b"CNI<"
BEGUN, REFUSED, DONE = 1, 2, 3
STATUS_REQUEST = "status"
"""Sent instead of a plugin's name: request for the agent's statistics, as JSON."""
REQUEST_HEAD, REPLY_HEAD = 48, 16
MAX_HEAD, MAX_STDIN, MAX_STDOUT = 1 << 20, 4 << 20, 4 << 20
REQUEST_SECONDS, BEGIN_SECONDS = 10.0, 30.0
_STDERR = 2


class FrameError(Exception):
    """The other side speaks something else, or broke off."""


class BrokeOff(Exception):
    """The agent had begun and did not come to the end."""


def pack_request(
    plugin: str,
    launcher: str,
    environ: "Iterable[tuple[bytes, bytes]]",
    stdin: bytes,
    namespaces: tuple[int, int, int, int],
    descriptors: int,
) -> bytes:
    """The bytes of a request; ``namespaces``: device and inode of the caller's network and mount namespace."""
    head = b"\0".join([plugin.encode(), launcher.encode(errors="surrogateescape"), *(k + b"=" + v for k, v in environ)]) + b"\0"
    numbers = b"".join(n.to_bytes(8, "big") for n in namespaces)
    lengths = len(head).to_bytes(4, "big") + len(stdin).to_bytes(4, "big")
    return REQUEST_MAGIC + bytes((PROTOCOL, descriptors, 0, 0)) + lengths + numbers + head + stdin


def unpack_request_head(data: bytes) -> tuple[int, int, int, tuple[int, int, int, int]]:
    """Number of descriptors, bytes of head and standard input, namespaces. Raises: FrameError."""
    if data[:4] != REQUEST_MAGIC:
        raise FrameError("not a request of cni-py")
    if data[4] != PROTOCOL:
        raise FrameError(f"protocol {data[4]}, this is {PROTOCOL}")
    head, stdin = int.from_bytes(data[8:12], "big"), int.from_bytes(data[12:16], "big")
    if head > MAX_HEAD or stdin > MAX_STDIN:
        raise FrameError(f"request too large: {head} and {stdin} bytes")
    a, b, c, d = (int.from_bytes(data[i : i + 8], "big") for i in range(16, 48, 8))
    return data[5], head, stdin, (a, b, c, d)


def unpack_head(head: bytes) -> tuple[str, str, dict[str, str]]:
    """Plugin, launcher, environment. Raises: FrameError."""
    parts = head.decode(errors="surrogateescape").split("\0")
    if len(parts) < 3:
        raise FrameError("request without plugin and launcher")
    pairs = (part.partition("=") for part in parts[2:] if part)
    return parts[0], parts[1], {key: value for key, _, value in pairs}


def pack_reply(kind: int, status: int = 0, stdout: bytes = b"") -> bytes:
    return REPLY_MAGIC + bytes((PROTOCOL, kind, 0, 0)) + status.to_bytes(4, "big") + len(stdout).to_bytes(4, "big") + stdout


def read_reply(sock: socket) -> tuple[int, int, bytes]:
    """Kind, exit status, standard output. Raises: FrameError, OSError."""
    data = read_exactly(sock, REPLY_HEAD)
    length = int.from_bytes(data[12:16], "big")
    if data[:4] != REPLY_MAGIC or data[4] != PROTOCOL or length > MAX_STDOUT:
        raise FrameError("not a reply of this protocol")
    return data[5], int.from_bytes(data[8:12], "big"), read_exactly(sock, length)


def read_exactly(sock: socket, length: int, data: bytes = b"") -> bytes:
    """``data``, which was read before, completed to this length. Raises: FrameError where the other side closed; OSError."""
    while len(data) < length:
        block = sock.recv(min(length - len(data), 1 << 16))
        if not block:
            raise FrameError(f"the connection broke after {len(data)} of {length} bytes")
        data += block
    return data


# ---- the client's side -------------------------------------------------------------------------


def ask_agent(plugin: str, launcher: str, netns: str, stdin: bytes) -> tuple[int, bytes] | None:
    """Exit status and standard output; None where there is no agent or it refuses. Raises: BrokeOff.

    ``netns``: the sandbox, "" where the call has none.
    """
    if NESTED.encode() in posix.environ:
        return None
    sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    if sock.fileno() <= _STDERR:  # we were started without one of the standard descriptors
        return None
    sock.settimeout(REQUEST_SECONDS)
    try:
        sock.connect(SOCKET_PATH)
        check_agent_user(sock)
        _send_request(sock, plugin, launcher, netns, stdin)
        kind, status, reply = _first_reply(sock)
    except (OSError, FrameError):
        return None
    if kind != BEGUN:
        return (status, reply) if kind == DONE else None
    sock.settimeout(None)
    try:
        return read_reply(sock)[1:]
    except (OSError, FrameError) as error:
        raise BrokeOff(str(error)) from error


def peer_uid(sock: socket) -> int:
    """Return the user of the process at the other end: of a client the one that connects, of an agent the one that listens."""
    credentials = sock.getsockopt(SOL_SOCKET, SO_PEERCRED, 12)  # struct ucred: pid, uid, gid
    return int.from_bytes(credentials[4:8], byteorder)


def check_agent_user(sock: socket) -> None:
    """Refuse to send namespaces and configurations to a process of another user. Raises: FrameError."""
    if (uid := peer_uid(sock)) not in (0, posix.geteuid()):
        raise FrameError(f"a process of the user {uid} listens there")


def _send_request(sock: socket, plugin: str, launcher: str, netns: str, stdin: bytes) -> None:
    """Send the request. Raises: OSError, also if standard error or the sandbox cannot be passed: then we work alone."""
    net, mount = posix.stat("/proc/self/ns/net"), posix.stat("/proc/self/ns/mnt")
    descriptors = [_STDERR]
    if netns:
        try:
            descriptors.append(posix.open(netns, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NONBLOCK))
        except OSError:  # deleted: not an error for DEL, and for the others the agent reports it
            pass
    namespaces = net.st_dev, net.st_ino, mount.st_dev, mount.st_ino
    request = pack_request(plugin, launcher, posix.environ.items(), stdin, namespaces, len(descriptors))
    rights = b"".join([fd.to_bytes(4, byteorder) for fd in descriptors])
    sent = sock.sendmsg([request], [(SOL_SOCKET, SCM_RIGHTS, rights)])
    if sent < len(request):  # otherwise the agent has it all, and may have replied and exited already
        sock.sendall(request[sent:])


def _first_reply(sock: socket) -> tuple[int, int, bytes]:
    """Return BEGUN, REFUSED or DONE; prevents an agent that is late from beginning. Raises: FrameError, OSError."""
    sock.settimeout(BEGIN_SECONDS)
    try:
        return read_reply(sock)
    except TimeoutError:
        pass
    sock.shutdown(SHUT_RD)  # from here on it cannot send BEGUN any more, and without that it does not begin
    reply = read_reply(sock)  # the end; or it had begun just before: its work ends before we repeat it
    _wait_until_closed(sock)
    return reply


def _wait_until_closed(sock: socket) -> None:
    from select import poll

    waiting = poll()
    waiting.register(sock, 0)  # a hangup is always reported
    waiting.poll()
