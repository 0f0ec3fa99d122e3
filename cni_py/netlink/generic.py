"""Generic netlink: the families that are known by name, as "wireguard". Source: linux net/netlink/genetlink.c."""

from __future__ import annotations

from cni_py.netlink.attributes import decode, encode
from cni_py.netlink.constants import CTRL_CMD_GETFAMILY, GENL_ID_CTRL, NETLINK_GENERIC
from cni_py.netlink.socket import Netlink, new_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType


class Family:
    """A socket for one family, in the namespace of the calling thread. A context manager.

    A message is a header (``struct genlmsghdr``) and attributes.

    Raises: NetlinkError, ENOENT if the kernel has no such family.
    """

    def __init__(self, name: str) -> None:
        question = encode("ctrlmsg", {"cmd": CTRL_CMD_GETFAMILY, "version": 1, "CTRL_ATTR_FAMILY_NAME": name})
        self._netlink = Netlink(new_socket(NETLINK_GENERIC))
        try:
            self._kind = decode("ctrlmsg", self._netlink.get(question, GENL_ID_CTRL))["CTRL_ATTR_FAMILY_ID"]
        except OSError:
            self._netlink.close()
            raise

    def __enter__(self) -> Family:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._netlink.close()

    def change(self, message: bytes) -> None:
        """Send one command and wait for its acknowledgement. Raises: NetlinkError."""
        self._netlink.change(message, self._kind)

    def dump(self, question: bytes) -> list[bytes]:
        """Return all objects. Raises: NetlinkError."""
        return self._netlink.dump(question, self._kind)
