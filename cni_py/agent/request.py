"""A client's request: read from the connection, with the file descriptors that come with it, and checked."""

from __future__ import annotations

import os
import socket
import struct

from cni_py import protocol
from cni_py.agent.log import log
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_DESCRIPTORS = 4
Namespaces = tuple[int, int, int, int]
"""Device and inode of a network and a mount namespace."""


class Request(Value):
    """One call. ``is_acceptable``: whether this agent can handle it; else the client has to."""

    plugin: str
    launcher: str
    environ: Mapping[str, str]
    stdin: bytes
    is_acceptable: bool

    @property
    def is_status(self) -> bool:
        """True if it asks for the agent's report."""
        return self.plugin == protocol.STATUS_REQUEST


def read(connection: socket.socket, descriptors: list[int], own: Namespaces) -> Request | None:
    """Read a request; None for another version of the protocol. Raises: FrameError, OSError.

    Args:
        descriptors: the received ones are added here, whatever happens then: the caller closes them.
        own: the agent's namespaces.
    """
    data, ancillary, _, _ = connection.recvmsg(1 << 16, socket.CMSG_LEN(MAX_DESCRIPTORS * 4), socket.MSG_CMSG_CLOEXEC)
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors += struct.unpack(f"={len(content) // 4}i", content[: len(content) // 4 * 4])
    data = protocol.read_exactly(connection, protocol.REQUEST_HEAD, data)
    try:
        announced, head, stdin, namespaces = protocol.unpack_request_head(data)
    except protocol.FrameError as error:
        log(f"refused: {error}")
        return None
    stdin_at = protocol.REQUEST_HEAD + head
    data = protocol.read_exactly(connection, stdin_at + stdin, data)
    plugin, launcher, environ = protocol.unpack_head(data[protocol.REQUEST_HEAD : stdin_at])
    # Fewer descriptors than announced: the kernel drops them when this process has none left.
    is_acceptable = namespaces == own and announced == len(descriptors) > 0
    return Request(plugin, launcher, environ, data[stdin_at : stdin_at + stdin], is_acceptable)


def own_namespaces() -> Namespaces:
    """Namespaces of this process."""
    net, mount = os.stat("/proc/self/ns/net"), os.stat("/proc/self/ns/mnt")
    return net.st_dev, net.st_ino, mount.st_dev, mount.st_ino
