"""Kernel parameters that forwarding depends on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cni_py.doctor.findings import Finding
from cni_py.doctor.rules import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_py.doctor.facts import Facts

_STRICT = "1"


def _set(name: str, value: str, what: str, found: str) -> Finding:
    """Return the finding about a parameter. A name of a link may have dots: sysctl(8) takes slashes too."""
    words = name if "." in name else name.replace("/", ".")
    command = ("sysctl", "-w", f"{words}={value}")
    keep = f"to keep it: echo {words}={value} >/etc/sysctl.d/90-flannel.conf"
    return Finding(what, (found,), (" ".join(command), keep), (command,))


def _versions(facts: Facts) -> set[int]:
    return {network.version for network in facts.networks}


def forwarding(facts: Facts) -> Iterator[Finding]:
    """Packets of pods are forwarded: by the host, and by each device on the way."""
    versions, values = _versions(facts), facts.sysctls
    if 4 in versions and values.get("net/ipv4/ip_forward") == "0":
        yield _set("net/ipv4/ip_forward", "1", "this node does not forward IPv4 packets", "net.ipv4.ip_forward is 0")
    if 6 in versions and values.get("net/ipv6/conf/all/forwarding") == "0":
        name = "net/ipv6/conf/all/forwarding"
        yield _set(name, "1", "this node does not forward IPv6 packets", "net.ipv6.conf.all.forwarding is 0")
    if 4 not in versions or values.get("net/ipv4/ip_forward") != "1":
        return
    for name, value in values.items():
        _, _, rest = name.partition("net/ipv4/conf/")
        device, _, key = rest.rpartition("/")
        if key == "forwarding" and value == "0":
            yield _set(name, "1", f"packets from {device} are not forwarded", f"net.ipv4.conf.{device}.forwarding is 0")


def rp_filter(facts: Facts) -> Iterator[Finding]:
    """Packets that the strict check of the source drops: by the kernel's own decision about each, not by the parameter alone.

    Routing that is symmetric, as flannel's is, passes it: RHEL has it on everywhere.
    """
    values = facts.sysctls
    everywhere = values.get("net/ipv4/conf/all/rp_filter", "0")
    strict = [
        name.removeprefix("net/ipv4/conf/").removesuffix("/rp_filter")
        for name, value in values.items()
        if name.endswith("/rp_filter") and not name.endswith("/all/rp_filter") and max(value, everywhere) == _STRICT
    ]
    dropped = [one for one in facts.passages if one.fails_strict_check and one.incoming in strict]
    if not dropped:
        return
    devices = dict.fromkeys(one.incoming for one in dropped)
    command = ("sysctl", "-w", "net.ipv4.conf.all.rp_filter=2")
    yield Finding(
        f"the kernel drops packets on {', '.join(devices)}: their source is reached by another link",
        (
            f"rp_filter is {_STRICT} on {', '.join(strict)} (all: {everywhere})",
            *shown((f"dropped: packets {one.words}, whose source is reached by {one.source_by}" for one in dropped), 3),
        ),
        (" ".join(command), "to keep it: echo net.ipv4.conf.all.rp_filter=2 >/etc/sysctl.d/90-flannel.conf"),
        (command,),
    )


def bridge_netfilter(facts: Facts) -> Iterator[Finding]:
    """Packets between pods of this node pass iptables, without which Services do not work."""
    if not facts.is_flannel:
        return
    names = {4: "net/bridge/bridge-nf-call-iptables", 6: "net/bridge/bridge-nf-call-ip6tables"}
    versions = _versions(facts) or {4}
    present = {version: facts.sysctls.get(name) for version, name in names.items() if version in versions}
    if not any(present.values()):
        if facts.has_kube_proxy:
            yield Finding(
                "the kernel module br_netfilter is not loaded",
                ("kube-proxy has rules on this node, and its Services do not answer pods on the node of their endpoint",),
                ("modprobe br_netfilter", "to keep it: echo br_netfilter >/etc/modules-load.d/br_netfilter.conf"),
                (("modprobe", "br_netfilter"),),
            )
        return
    for version, value in present.items():
        if value == "0":
            name = names[version]
            dotted = name.replace("/", ".")
            yield _set(name, "1", "packets between pods of this node do not pass iptables", f"{dotted} is 0")


def ipv6_disabled(facts: Facts) -> Iterator[Finding]:
    """A link on the way without IPv6 in a network that has it."""
    if 6 not in _versions(facts):
        return
    for name, value in facts.sysctls.items():
        device = name.removeprefix("net/ipv6/conf/").removesuffix("/disable_ipv6")
        is_on_the_way = (
            device == facts.bridge_name
            or device.startswith("flannel-v6")
            or (facts.external is not None and device == facts.external.name)
        )
        if name.endswith("/disable_ipv6") and value == "1" and is_on_the_way:
            yield _set(name, "0", f"IPv6 is off on {device}", f"net.ipv6.conf.{device}.disable_ipv6 is 1")
