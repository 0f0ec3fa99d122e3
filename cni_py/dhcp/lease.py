"""A lease: how it is acquired, renewed, rebound and given back. What the daemon keeps of it is in ``daemon.py``.

How it works. A transaction opens a port in the sandbox, sends, waits, and closes it. DISCOVER and REQUEST are sent three
times at most, the first repetitions soon: a bridge forwards nothing in the first moments of a port. RENEW and RELEASE go
to the server alone, from the leased address: its MAC address is that of its reply where a router leads to it.

Source: RFC 2131; containernetworking/plugins plugins/ipam/dhcp/lease.go.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from itertools import count

from cni_py.dhcp import packet as dhcp
from cni_py.dhcp.packet import ANY, BROADCAST, Message
from cni_py.dhcp.port import EVERYONE, Port
from cni_py.errors import NotAvailable
from cni_py.journal import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEFAULT_LEASE_SECONDS = 3600
MAX_CLIENT_ID = 254
MAX_MESSAGE = 1500
SHOWN_BYTES = 200
"""Length of a server's text in an error."""
_SOON_SECONDS = (1.0, 2.0)


@dataclass(frozen=True, slots=True)
class Client:
    """Whom a lease is for, and what is asked for and provided."""

    identity: str
    netns: str
    ifname: str
    requested: tuple[int, ...] = (dhcp.SUBNET_MASK, dhcp.ROUTER)
    provided: tuple[tuple[int, bytes], ...] = ()

    def options(self) -> dict[int, bytes]:
        """Options of every message of this client."""
        identity = (b"\0" + self.identity.encode(errors="surrogateescape"))[:MAX_CLIENT_ID]
        return {dhcp.CLIENT_ID: identity, **dict(self.provided)}

    def asked(self) -> dict[int, bytes]:
        """Options of those messages that ask for others."""
        more = {dhcp.REQUESTED_OPTIONS: bytes(self.requested), dhcp.MAX_SIZE: MAX_MESSAGE.to_bytes(2, "big")}
        return self.options() | more


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds: how long a packet is waited for; the pauses between tries; until when is tried."""

    timeout: float = 10.0
    resend_max: float = 62.0
    resend_timeout: float = 208.0
    is_broadcast: bool = False


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as the server granted it; times are of ``time.monotonic``."""

    ack: Message
    server: IPv4Address
    server_mac: bytes
    renewal: float
    rebinding: float
    expiry: float

    @property
    def address(self) -> IPv4Address:
        return self.ack.yours

    def way_to_server(self) -> tuple[IPv4Address, bytes]:
        """Return the IP and MAC addresses by which the server is reached, without ARP: the interface may have no address.

        On the same link it gets what is sent to every host, whatever MAC address it has by now: a bridge takes another one
        when the port with the lowest is deleted. A router forwards nothing that was sent so: it has to be addressed itself.
        """
        if self.server == ANY:
            return BROADCAST, EVERYONE
        prefix = dhcp.parse_mask(self.ack.options.get(dhcp.SUBNET_MASK, b"")) or 32
        is_on_link = self.server in IPv4Network((self.address, prefix), strict=False)
        return self.server, EVERYONE if is_on_link else self.server_mac


def lease_of(ack: Message, sender: bytes, began: float) -> Lease:
    """Pure. Raises: ValueError if it lacks what a lease needs."""
    prefix = dhcp.parse_mask(ack.options.get(dhcp.SUBNET_MASK, b""))
    if prefix is None:
        raise ValueError("DHCP option Subnet Mask not found in DHCPACK")
    if not prefix or not dhcp.is_of_a_host(ack.yours):
        raise ValueError(f"the server offers {ack.yours}/{prefix}, which no host can have")
    seconds = ack.seconds_of(dhcp.LEASE_TIME) or DEFAULT_LEASE_SECONDS
    renewal = ack.seconds_of(dhcp.RENEWAL_TIME) or seconds / 2
    rebinding = ack.seconds_of(dhcp.REBINDING_TIME) or seconds * 0.85
    renewal, rebinding = min(renewal, seconds), min(max(rebinding, renewal), seconds)
    server = ack.address(dhcp.SERVER) or ANY
    return Lease(ack, server, sender, began + renewal, began + rebinding, began + seconds)


# ---- acquire ----------------------------------------------------------------------------------


def acquire(client: Client, timing: Timing, sleep: Callable[[float], object] = time.sleep) -> Lease:
    """Get a lease, with pauses between tries. Raises: NotAvailable after ``resend_timeout``; InvalidNetNS; KernelRefused."""
    deadline = time.monotonic() + timing.resend_timeout
    pauses = backoff(timing)
    while True:
        error = ""
        try:
            with Port(client.netns, client.ifname) as port:
                return transact(port, client, timing)
        except NotAnswered as failure:
            error = failure.msg
        pause = next(pauses)
        if time.monotonic() + pause > deadline:
            raise NotAvailable(
                "no more tries", f"{error}, {timing.resend_timeout:.0f} s long", "is a DHCP server on that network?"
            )
        sleep(pause)


class NotAnswered(NotAvailable):
    """Failure of a try that may succeed later."""


def backoff(timing: Timing) -> Iterator[float]:
    """Yield pauses: four of about 2 s, then 4 s doubling."""
    for number in count(1):
        base = 2.0 if number <= 4 else min(4.0 * 2 ** min(number - 5, 10), timing.resend_max)
        yield max(0.1, base + random.uniform(-1, 1))  # noqa: S311 — no secret


def transact(port: Port, client: Client, timing: Timing) -> Lease:
    """One DISCOVER, OFFER, REQUEST, ACK. Raises: NotAnswered, KernelRefused."""
    began, xid = time.monotonic(), random.getrandbits(32)
    first = Message(dhcp.DISCOVER, xid, port.mac, is_broadcast=timing.is_broadcast, options=client.asked())

    def is_offer(message: Message) -> bool:
        return message.xid == xid and message.kind == dhcp.OFFER and message.address(dhcp.SERVER) is not None

    offer, _ = ask(port, first, is_offer, timing, "DHCPOFFER")
    chosen = {dhcp.REQUESTED_ADDRESS: offer.yours.packed, dhcp.SERVER: offer.options[dhcp.SERVER][:4]}
    request = replace(first, kind=dhcp.REQUEST, options=client.asked() | chosen)
    ack, sender = ask(port, request, lambda message: is_answer(message, xid), timing, "DHCPACK")
    return granted(ack, sender, began)


def granted(ack: Message, sender: bytes, began: float) -> Lease:
    """Raises: NotAnswered for a NAK, or an ACK that is not complete."""
    if ack.kind == dhcp.NAK:
        text = printable(ack.options.get(dhcp.ERROR_TEXT, b"")[:SHOWN_BYTES].decode(errors="replace"))
        raise NotAnswered("the DHCP server refused: DHCPNAK", text)
    try:
        return lease_of(ack, sender, began)
    except ValueError as error:
        raise NotAnswered(str(error)) from error


def is_answer(message: Message, xid: int) -> bool:
    return message.xid == xid and message.kind in (dhcp.ACK, dhcp.NAK)


def ask(
    port: Port, message: Message, is_wanted: Callable[[Message], bool], timing: Timing, what: str, **to: object
) -> tuple[Message, bytes]:
    """Send a message until it is answered, three times at most. Raises: NotAnswered, KernelRefused."""
    for wait in (*(min(seconds, timing.timeout) for seconds in _SOON_SECONDS), timing.timeout):
        port.send(message, **to)  # type: ignore[arg-type]
        found = port.receive(is_wanted, wait)
        if found is not None:
            return found
    raise NotAnswered(f'no {what} on "{port.link.name}"')


# ---- keep and give back -----------------------------------------------------------------------


def extend(client: Client, lease: Lease, timing: Timing, *, rebind: bool) -> Lease:
    """Renew at the server of the lease, or rebind at any. Raises: NotAnswered, InvalidNetNS, KernelRefused."""
    began, xid = time.monotonic(), random.getrandbits(32)
    with Port(client.netns, client.ifname) as port:
        request = Message(dhcp.REQUEST, xid, port.mac, client=lease.address, options=client.asked())
        target, mac = (BROADCAST, EVERYONE) if rebind else lease.way_to_server()
        ack, sender = ask(
            port,
            request,
            lambda message: is_answer(message, xid),
            timing,
            "DHCPACK",
            source=lease.address,
            target=target,
            to=mac,
        )
    return granted(ack, sender, began)


def release(client: Client, lease: Lease) -> None:
    """Give the address back, from the address itself: a server's kernel drops what comes from 0.0.0.0 to it alone.

    It is one packet that is not answered, and the interface is deleted next. Raises: InvalidNetNS, KernelRefused, NotAvailable.
    """
    with Port(client.netns, client.ifname) as port:
        options = client.options() | {dhcp.SERVER: lease.server.packed}
        message = Message(dhcp.RELEASE, random.getrandbits(32), port.mac, client=lease.address, options=options)
        port.send(message, lease.address, *lease.way_to_server())
        if not port.wait_until_sent():
            raise NotAvailable(f'the DHCPRELEASE has not left "{client.ifname}"', "its queueing discipline or driver holds it")
