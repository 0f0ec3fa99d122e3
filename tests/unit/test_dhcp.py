"""dhcp: options of configurations, the daemon's command line, times of leases, pauses between tries, the result of a lease."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cni_py.dhcp import daemon, options
from cni_py.dhcp import packet as dhcp
from cni_py.dhcp.lease import Client, NotAnswered, Timing, backoff, granted, lease_of, transact
from cni_py.dhcp.packet import Message
from cni_py.dhcp.saved import Saved, Store
from cni_py.errors import InvalidConfig

MASK = {dhcp.SUBNET_MASK: bytes([255, 255, 255, 0])}


def ack(**values: bytes) -> Message:
    return Message(
        dhcp.ACK,
        1,
        bytes(6),
        True,
        yours=IPv4Address("10.1.0.7"),
        options=MASK | {getattr(dhcp, name): value for name, value in values.items()},
    )


def seconds(number: int) -> bytes:
    return number.to_bytes(4, "big")


@pytest.mark.parametrize(
    ("values", "times"),
    [
        ({}, (1800, 3060, 3600)),
        ({"LEASE_TIME": seconds(100)}, (50, 85, 100)),
        ({"LEASE_TIME": seconds(100), "RENEWAL_TIME": seconds(10), "REBINDING_TIME": seconds(20)}, (10, 20, 100)),
        ({"LEASE_TIME": seconds(100), "RENEWAL_TIME": seconds(90), "REBINDING_TIME": seconds(20)}, (90, 90, 100)),
        ({"LEASE_TIME": seconds(100), "RENEWAL_TIME": seconds(900), "REBINDING_TIME": seconds(900)}, (100, 100, 100)),
        ({"LEASE_TIME": b"\1"}, (1800, 3060, 3600)),
    ],
)
def test_times_of_a_lease(values: dict[str, bytes], times: tuple[float, ...]) -> None:
    lease = lease_of(ack(**values), bytes(6), 1000.0)
    assert tuple(time - 1000 for time in (lease.renewal, lease.rebinding, lease.expiry)) == times


@pytest.mark.parametrize(
    ("server", "way"),
    [
        ("10.1.0.1", ("10.1.0.1", b"\xff" * 6)),
        ("10.9.0.1", ("10.9.0.1", b"router")),  # behind a router, which forwards nothing that was sent to every host
        ("0.0.0.0", ("255.255.255.255", b"\xff" * 6)),  # it has not named itself
    ],
)
def test_way_to_the_server(server: str, way: tuple[str, bytes]) -> None:
    address, mac = lease_of(ack(SERVER=IPv4Address(server).packed), b"router", 0.0).way_to_server()
    assert (str(address), mac) == way


@pytest.mark.parametrize("mask", [b"", bytes([255, 0, 255, 0]), bytes(3)])
def test_lease_without_a_mask_is_none(mask: bytes) -> None:
    with pytest.raises(ValueError, match="Subnet Mask not found"):
        lease_of(ack(SUBNET_MASK=mask), bytes(6), 0.0)


@pytest.mark.parametrize("address", ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"])
def test_address_that_no_host_can_have_is_not_taken(address: str) -> None:
    with pytest.raises(ValueError, match="no host can have"):
        lease_of(replace(ack(), yours=IPv4Address(address)), bytes(6), 0.0)


def test_mask_of_the_whole_internet_is_not_taken() -> None:
    with pytest.raises(ValueError, match="no host can have"):
        lease_of(ack(SUBNET_MASK=bytes(4)), bytes(6), 0.0)


def test_text_of_a_server_cannot_steer_a_terminal() -> None:
    refusal = replace(ack(ERROR_TEXT=b"\x1b]0;owned\x07\r\n" + b"x" * 4000), kind=dhcp.NAK)
    with pytest.raises(NotAnswered) as caught:
        granted(refusal, bytes(6), 0.0)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_pauses_begin_short_and_double() -> None:
    pauses = list(islice(backoff(Timing(resend_max=30)), 20))
    assert all(1 <= pause <= 3 for pause in pauses[:4])
    assert [round(pause / base) for pause, base in zip(pauses[4:8], (4, 8, 16, 30), strict=True)] == [1, 1, 1, 1]
    assert all(29 <= pause <= 31 for pause in pauses[8:])


def test_client_identifier_is_that_of_go_and_is_cut() -> None:
    client = Client("c1/net/eth0", "/run/netns/c1", "eth0")
    assert client.options() == {dhcp.CLIENT_ID: b"\0c1/net/eth0"}
    assert len(Client("c" * 300, "", "eth0").options()[dhcp.CLIENT_ID]) == 254


@pytest.mark.parametrize(
    ("ipam", "requested", "provided"),
    [
        ({}, (1, 3), ()),
        ({"request": [{"option": "121"}]}, (121, 1, 3), ()),
        ({"request": [{"option": "routers"}, {"option": "6", "skipDefault": True}]}, (3, 6), ()),
        ({"provide": [{"option": "12", "value": "web"}]}, (1, 3), ((12, b"web"),)),
        (
            {"provide": [{"option": "host-name", "fromArg": "NAME"}, {"option": "60", "fromArg": "NONE"}]},
            (1, 3),
            ((12, b"pod"),),
        ),
    ],
)
def test_options_of_a_configuration(ipam: dict[str, Any], requested: tuple[int, ...], provided: Any) -> None:
    assert options.parse(ipam, {"NAME": "pod"}) == (requested, provided)


@pytest.mark.parametrize("option", ["colour", "300", "9" * 5000, "-1", "", "1.5", "１", "256"])
def test_option_that_is_none(option: str) -> None:
    with pytest.raises(InvalidConfig, match="Can not parse option"):
        options.parse({"request": [{"option": option}]}, {})


@pytest.mark.parametrize("form", ["-{} {}", "--{} {}", "-{}={}", "--{}={}"])
def test_command_line_in_every_form_of_go(form: str) -> None:
    given = {
        "pidfile": "/p", "hostprefix": "/host", "socketpath": "/s", "timeout": "1m30s", "resendmax": "500ms", "resendtimeout": "1h",
    }  # fmt: skip
    words = [word for name, value in given.items() for word in form.format(name, value).split()] + ["-broadcast"]
    assert daemon.parse_arguments(words) == daemon.Settings("/s", "/p", "/host", Timing(90, 0.5, 3600, True))
    assert daemon.parse_arguments(["-broadcast=false"]) == daemon.parse_arguments([])


@pytest.mark.parametrize(
    "words",
    [["-colour"], ["pidfile"], ["-pidfile"], ["-timeout", "10"], ["-timeout", "x"], ["-timeout=-1s"], ["-timeout", "0s"]],
)
def test_command_line_that_is_none(words: list[str]) -> None:
    with pytest.raises(InvalidConfig):
        daemon.parse_arguments(words)
    assert daemon.main(words) == 2


@pytest.mark.parametrize(
    ("values", "routes"),
    [
        ({}, []),
        ({"ROUTER": bytes([10, 0, 0, 1, 10, 0, 0, 2])}, [["0.0.0.0/0", "10.0.0.1"]]),
        (
            {"ROUTER": bytes([10, 0, 0, 1]), "STATIC_ROUTES": bytes([172, 16, 0, 0, 10, 0, 0, 3])},
            [["172.16.0.0/16", "10.0.0.3"], ["0.0.0.0/0", "10.0.0.1"]],
        ),
        (
            {"ROUTER": bytes([10, 0, 0, 1]), "CLASSLESS_ROUTES": bytes([24, 192, 0, 2, 0, 0, 0, 0])},
            [["192.0.2.0/24", "0.0.0.0"]],
        ),
    ],
)
def test_routes_of_a_lease(values: dict[str, bytes], routes: list[list[str]]) -> None:
    assert daemon.described(lease_of(ack(**values), bytes(6), 0.0))["routes"] == routes


class Deaf:
    """A port on which no server is heard; ``sent`` keeps the messages."""

    def __init__(self) -> None:
        self.mac, self.sent = bytes(6), list[Message]()
        self.link = SimpleNamespace(name="eth0")

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def receive(self, *_: object) -> None:
        return None


@pytest.mark.parametrize("is_broadcast", [True, False])
def test_broadcast_is_asked_for_with_the_option_alone(is_broadcast: bool) -> None:
    """Go's `-broadcast` has no effect."""
    port = Deaf()
    with pytest.raises(NotAnswered, match='no DHCPOFFER on "eth0"'):
        transact(port, Client("c1/net/eth0", "/run/netns/c1", "eth0"), Timing(is_broadcast=is_broadcast))  # type: ignore[arg-type]
    assert [message.is_broadcast for message in port.sent] == [is_broadcast] * 3
    assert port.sent[0].encode()[10:12] == (b"\x80\0" if is_broadcast else b"\0\0")


def test_saved_lease_is_read_by_the_next_daemon_of_the_socket_and_no_other(tmp_path: Path) -> None:
    said: list[str] = []
    client = Client("c1/net/eth0", "/run/netns/c1", "eth0", (1, 3, 121), ((12, b"web\xff"), (60, b"")))
    lease = lease_of(ack(LEASE_TIME=seconds(100), SERVER=bytes([10, 0, 0, 1])), b"\2\0\0\0\0\1", 1000.0)
    saved = Saved(client, lease, (4, 711))
    one, other = (Store(f"/run/{name}.sock", said.append, str(tmp_path)) for name in ("one", "other"))
    one.save(saved)
    assert (list(one.load()), list(other.load())) == ([saved], [])
    one.remove(client.identity)
    one.remove(client.identity)
    assert list(one.load()) == said == []


def test_store_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "run").write_text("")
    Store("/run/one.sock", said.append, str(tmp_path)).save(
        Saved(Client("c1/net/eth0", "/run/netns/c1", "eth0"), lease_of(ack(), bytes(6), 1000.0), (4, 711))
    )
    assert [line.partition(": ")[0] for line in said] == ["c1/net/eth0"]
