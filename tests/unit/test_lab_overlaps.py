"""``cni-py lab up`` reports a network that overlaps the lab's own LAN, in flanneld's words."""

from __future__ import annotations

from typing import Any

import pytest

from cni_py.cli.lab_commands import overlaps
from cni_py.lab.plan import make_settings


def lines(config: dict[str, Any], segments: int = 1) -> list[str]:
    settings = make_settings(
        3, "vxlan", False, "file", segments,
        ipv4=True, pods=1, backend_options={}, config={**config, "Backend": {"Type": "vxlan"}}, flanneld="", flanneld_options=(),
    )  # fmt: skip
    return overlaps(settings)


@pytest.mark.parametrize(
    "config, segments, words",
    [
        ({"Network": "10.244.0.0/16"}, 2, []),
        ({"Network": "192.168.0.0/16"}, 1, ["192.168.0.0/16 contains 192.168.123.0/24 of eth0, networks of"]),
        ({"Network": "192.168.0.0/16"}, 2, ["contains 192.168.123.0/24 of eth0, 192.168.124.0/24 of eth0, networks of"]),
        ({"Network": "192.168.123.0/24", "SubnetLen": 28}, 1, ["is inside 192.168.123.0/24 of eth0"]),
        ({"Network": "10.244.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00::/16"}, 1, ["fd00::/16 contains fd00:123::/64 of eth0"]),
        ({"Network": "10.244.0.0/33"}, 1, []),
    ],
)  # fmt: skip
def test_overlap_with_the_labs_own_network(config: dict[str, Any], segments: int, words: list[str]) -> None:
    found = lines(config, segments)
    assert len(found) == len(words)
    assert all(text in line for text, line in zip(words, found, strict=True))
