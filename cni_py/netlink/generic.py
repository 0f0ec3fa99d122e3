"""Generic netlink: the families that are known by name, as "wireguard". Source: linux net/netlink/genetlink.c."""

from __future__ import annotations

from struct import pack

from cni_py.netlink.attributes import attribute, attributes, number
from cni_py.netlink.constants import CTRL_CMD_GETFAMILY, GENL_ID_CTRL, NETLINK_GENERIC
from cni_py.netlink.socket import Netlink, new_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

_CTRL_ATTR_FAMILY_ID, _CTRL_ATTR_FAMILY_NAME = 1, 2
_GENLMSGHDR = 4


class Family:
    """A socket for one family, in the namespace of the calling thread. A context manager.

    Raises: NetlinkError, ENOENT where the kernel has no such family.
    """

    def __init__(self, name: str, version: int = 1) -> None:
        self._version = version
        self._netlink = Netlink(new_socket(NETLINK_GENERIC))
        try:
            answer = self._netlink.get(self._body(CTRL_CMD_GETFAMILY, attribute(_CTRL_ATTR_FAMILY_NAME, name)), GENL_ID_CTRL)
        except OSError:
            self._netlink.close()
            raise
        self._kind = number(dict(attributes(answer[_GENLMSGHDR:]))[_CTRL_ATTR_FAMILY_ID])

    def __enter__(self) -> Family:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._netlink.close()

    def change(self, command: int, attributes: bytes) -> None:
        """Send one command and wait for its acknowledgement. Raises: NetlinkError."""
        self._netlink.change(self._body(command, attributes), self._kind)

    def dump(self, command: int, attributes: bytes) -> list[bytes]:
        """Ask for all objects; returns the attributes of each. Raises: NetlinkError."""
        return [body[_GENLMSGHDR:] for body in self._netlink.dump(self._body(command, attributes), self._kind)]

    def _body(self, command: int, attributes: bytes) -> bytes:
        """``struct genlmsghdr``, attributes."""
        return pack("=BBH", command, self._version, 0) + attributes
