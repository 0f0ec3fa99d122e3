"""Token buckets as values, and kernels without a feature: the error names its option."""

from __future__ import annotations

from collections.abc import Callable
from errno import EAFNOSUPPORT, ENOENT, EOPNOTSUPP
from ipaddress import ip_address
from typing import Any

import pytest

from cni_py.errors import NotAvailable
from cni_py.kernel import tc
from cni_py.kernel.link import Link
from cni_py.kernel.rule import add_rule
from cni_py.kernel.tc import Shape
from cni_py.kernel.vrf import create_vrf
from cni_py.netlink.attributes import attributes
from cni_py.netlink.constants import RTM_GETLINK
from cni_py.netlink.socket import NetlinkError

LINK = Link(7, "veth0", "veth", "", 1500, 0, 0, 0, "UP", "", False, False, None)


class Refusing:
    """A kernel that refuses the N-th change with this error, and has no links."""

    enter = ()

    def __init__(self, number: int, at: int = 1) -> None:
        self.number, self.at, self.changes = number, at, 0

    def get(self, question: bytes, kind: int) -> bytes:
        assert kind == RTM_GETLINK
        raise NetlinkError(19, f"No such device ({len(question)} bytes)")

    def change(self, *_: Any) -> None:
        self.change_all()

    def change_all(self, *_: Any) -> None:
        self.changes += 1
        if self.changes == self.at:
            raise NetlinkError(self.number, "refused")


@pytest.mark.parametrize(
    ("option", "kernel", "change"),
    [
        ("CONFIG_NET_SCH_TBF", Refusing(ENOENT), lambda k: tc.set_shape(k, LINK, Shape(1000, 1000))),
        ("CONFIG_NET_SCH_INGRESS", Refusing(ENOENT), lambda k: tc.redirect(k, LINK, LINK)),
        ("CONFIG_NET_CLS_U32, CONFIG_NET_ACT_MIRRED", Refusing(ENOENT, 2), lambda k: tc.redirect(k, LINK, LINK)),
        ("CONFIG_IFB", Refusing(EOPNOTSUPP), lambda k: tc.create_ifb(k, "bwp0", 1500, "alias")),
        ("CONFIG_NET_VRF", Refusing(EOPNOTSUPP), lambda k: create_vrf(k, "blue", 1)),
        ("CONFIG_IP_MULTIPLE_TABLES", Refusing(EAFNOSUPPORT), lambda k: add_rule(k, ip_address("192.0.2.1"), 100)),
    ],
)
def test_kernel_without_a_feature_is_reported_with_its_option(
    option: str, kernel: Refusing, change: Callable[[Any], None]
) -> None:
    with pytest.raises(NotAvailable) as raised:
        change(kernel)
    assert option in raised.value.msg
    assert "modprobe" in raised.value.hint


@pytest.mark.parametrize("rate", [1, 999, 125_000, 1_000_000, 10**9, 0xFFFFFFFF, 0x100000000, 12_500_000_000])
@pytest.mark.parametrize("burst", [1, 1500, 100_000, 1 << 20, (1 << 32) - 2])
def test_token_bucket_is_read_as_it_was_written(rate: int, burst: int) -> None:
    """Rates beyond 32 bits, and bursts whose time is beyond them, which the kernel computes from the bytes."""
    shape = Shape(rate, burst)
    found = tc._shape_of(dict(attributes(tc._tbf(shape))))
    assert found.rate == rate
    if 0 < shape.ticks <= 0xFFFFFFFF:
        assert tc.is_same(found, shape)
    assert shape.limit == min(rate * 25 // 1000 + burst, 0xFFFFFFFF)


@pytest.mark.parametrize("other", [None, Shape(1000, 100_000), Shape(1001, 90_000), Shape(2000, 100_000)])
def test_another_token_bucket_is_not_the_same(other: Shape | None) -> None:
    assert tc.is_same(other, Shape(1000, 100_000)) == (other == Shape(1000, 100_000))


def test_filter_is_read_as_it_was_written() -> None:
    assert tc._target_of(dict(attributes(tc._match_all(LINK)))) == LINK.ifindex
    assert tc._target_of({}) is None
