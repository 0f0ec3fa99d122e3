"""What is made is encoded by pyroute2, once: the attributes, and what is kept of them."""

from __future__ import annotations

from struct import pack

import pytest

from cni_py.netlink import attributes as rtnl
from cni_py.netlink.attributes import attribute, attributes

IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO = 4, 10, 18
RTA_DST, RTA_METRICS, RTA_TABLE = 1, 8, 15


@pytest.fixture(autouse=True)
def nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtnl, "_encoded", {})


def test_attributes_of_a_link() -> None:
    made = rtnl.made_of("ifinfmsg", ("IFLA_MASTER", 7), ("IFLA_MTU", 1450))
    assert made == attribute(IFLA_MASTER, pack("=I", 7)) + attribute(IFLA_MTU, pack("=I", 1450))


def test_attributes_in_attributes() -> None:
    info = ("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", (("VETH_INFO_PEER", (("IFLA_IFNAME", "eth0"),)),))
    ((kind, value),) = attributes(rtnl.made_of("ifinfmsg", ("IFLA_LINKINFO", info)))
    assert kind == IFLA_LINKINFO
    of_kind = dict(attributes(value))
    assert of_kind[1] == b"veth\0"
    ((peer, inside),) = attributes(of_kind[2])
    assert peer == 1  # VETH_INFO_PEER: struct ifinfomsg, then attributes
    assert dict(attributes(inside[16:])) == {3: b"eth0\0"}


@pytest.mark.parametrize(("family", "dst"), [(2, "10.244.0.0"), (10, "fd00::")])
def test_attributes_of_a_route(family: int, dst: str) -> None:
    made = dict(
        attributes(
            rtnl.made_of("rtmsg", ("RTA_DST", dst), ("RTA_TABLE", 1000), ("RTA_METRICS", (("RTAX_MTU", 1400),)), family=family)
        )
    )
    assert made[RTA_DST] == {2: b"\x0a\xf4\0\0", 10: b"\xfd" + bytes(15)}[family]
    assert made[RTA_TABLE] == pack("=I", 1000)
    assert dict(attributes(made[RTA_METRICS])) == {2: pack("=I", 1400)}


def test_attributes_end_on_a_boundary() -> None:
    assert len(rtnl.made_of("ifinfmsg", ("IFLA_IFNAME", "eth0"))) % 4 == 0


def test_a_list_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = rtnl.made_of("ifinfmsg", ("IFLA_MTU", 1450))
    monkeypatch.setattr(rtnl, "_message_class", lambda name: pytest.fail(f"{name} was used again"))
    assert rtnl.made_of("ifinfmsg", ("IFLA_MTU", 1450)) == first


def test_families_are_told_apart() -> None:
    in_ipv4 = rtnl.made_of("rtmsg", ("RTA_TABLE", 254), ("RTA_DST", "0.0.0.0"), family=2)
    assert rtnl.made_of("rtmsg", ("RTA_TABLE", 254), ("RTA_DST", "::"), family=10) != in_ipv4


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtnl, "_MAX_ENCODED", 3)
    for mtu in range(1000, 1010):
        assert rtnl.made_of("ifinfmsg", ("IFLA_MTU", mtu)) == attribute(IFLA_MTU, pack("=I", mtu))
        assert len(rtnl._encoded) <= 3
