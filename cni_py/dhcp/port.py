"""A socket for DHCP on one interface of a sandbox: whole IP packets, since the interface has no address yet.

The socket is opened for a transaction and closed: an open one would keep a deleted sandbox alive.

Source: packet(7).
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import termios
from time import monotonic

from cni_py.dhcp.packet import ANY, BROADCAST, Message, datagram, decode, payload
from cni_py.errors import KernelRefused, NotAvailable, reason_of
from cni_py.kernel.link import find_link, set_up
from cni_py.kernel.netns import open_in, open_sandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv4Address
    from types import TracebackType

    from cni_py.kernel.link import Link

ETH_P_IP = 0x0800
EVERYONE = b"\xff" * 6
CARRIER_SECONDS = 5.0
_POLL_SECONDS = 0.02
LEAVE_SECONDS = 2.0
_LEAVE_POLL_SECONDS = 0.002
_MAX_BYTES = 4096


class Port:
    """A context manager. ``netns``: path of the sandbox.

    Raises: InvalidNetNS, KernelRefused; NotAvailable without the interface.
    """

    def __init__(self, netns: str, ifname: str) -> None:
        self._path, self._ifname = netns, ifname

    def __enter__(self) -> Port:
        self.netns = open_sandbox(self._path)
        try:
            self.link = self._ready_link()
            self._socket = self.netns.run(self._open)
        except BaseException as error:
            self.netns.__exit__(None, None, None)
            if isinstance(error, OSError):
                raise KernelRefused(f'could not open a packet socket on "{self._ifname}"', reason_of(error)) from error
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()
        self.netns.__exit__(kind, error, trace)

    @property
    def mac(self) -> bytes:
        return bytes.fromhex(self.link.mac.replace(":", ""))

    def _open(self) -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, socket.htons(ETH_P_IP))
        sock.bind((self._ifname, ETH_P_IP))
        return sock

    def _ready_link(self) -> Link:
        """Set the interface up, and wait for its carrier: a packet sent before is lost."""
        with open_in(self.netns) as sandbox:
            link = find_link(sandbox, self._ifname)
            if link is None:
                raise NotAvailable(f'error looking up "{self._ifname}": Link not found', f"in {self._path}")
            if not link.is_up:
                set_up(sandbox, link)
            deadline = monotonic() + CARRIER_SECONDS
            while link.operstate not in ("UP", "UNKNOWN") and monotonic() < deadline:
                select.select([], [], [], _POLL_SECONDS)
                link = find_link(sandbox, self._ifname) or link
            return link

    def send(self, message: Message, source: IPv4Address = ANY, target: IPv4Address = BROADCAST, to: bytes = EVERYONE) -> None:
        """Send a message. Raises: KernelRefused."""
        try:
            address = (self._ifname, ETH_P_IP, 0, 0, to)
            self._socket.sendto(datagram(message.encode(), source, target), address)
        except OSError as error:
            raise KernelRefused(f'could not send over "{self._ifname}"', reason_of(error), errno=error.errno or 0) from error

    def wait_until_sent(self) -> bool:
        """Wait until what was sent has left the interface, and on a veth has arrived at its other end. Returns: whether it has.

        A packet that still waits, in a queueing discipline or for a busy processor, is dropped with the interface.
        """
        deadline = monotonic() + LEAVE_SECONDS
        while self._queued():
            if monotonic() > deadline:
                return False
            select.select([], [], [], _LEAVE_POLL_SECONDS)
        return True

    def _queued(self) -> int:
        """Return the memory of packets that were sent and not freed: packet(7) has SIOCOUTQ, whose number is TIOCOUTQ's."""
        return int(struct.unpack("i", fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)))[0])

    def receive(self, is_wanted: Callable[[Message], bool], seconds: float) -> tuple[Message, bytes] | None:
        """Wait for a message. Returns: it and the sender's MAC address; None after the time. Raises: KernelRefused."""
        deadline = monotonic() + seconds
        while (left := deadline - monotonic()) > 0:
            if not select.select([self._socket], [], [], left)[0]:
                break
            try:
                packet, (_, _, _, _, sender) = self._socket.recvfrom(_MAX_BYTES)
            except OSError as error:
                raise KernelRefused(
                    f'could not receive over "{self._ifname}"', reason_of(error), errno=error.errno or 0
                ) from error
            found = _message_in(packet)
            if found is not None and found.is_reply and found.mac == self.mac and is_wanted(found):
                return found, sender
        return None


def _message_in(packet: bytes) -> Message | None:
    data = payload(packet)
    try:
        return decode(data) if data is not None else None
    except ValueError:
        return None


def set_down(netns: str, ifname: str) -> None:
    """Set the interface down whose lease has ended. Raises: InvalidNetNS, KernelRefused."""
    from cni_py.kernel.link import set_down as down

    with open_sandbox(netns) as opened, open_in(opened) as sandbox:
        link = find_link(sandbox, ifname)
        if link is not None:
            down(sandbox, link)
