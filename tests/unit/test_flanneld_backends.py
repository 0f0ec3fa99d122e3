"""Decisions of udp, extension, ipip and wireguard: plans, packets, commands, messages. No root, no device."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import threading
import time
from base64 import b64encode
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from struct import pack
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from cni_py.errors import CniError, InvalidConfig, KernelRefused, NotAvailable, UnsupportedField
from cni_py.flanneld import backends
from cni_py.flanneld.backends import extension, ipip, udp, vxlan, wireguard
from cni_py.flanneld.commands import check_config
from cni_py.flanneld.iface import ExternalInterface
from cni_py.flanneld.lease import Attributes, Lease, Subnets
from cni_py.flanneld.network import NetworkConfig
from cni_py.kernel import device, tun, udp_port
from cni_py.kernel import wireguard as kernel_wireguard
from cni_py.kernel.ipip import device_data
from cni_py.kernel.wireguard import Peer, peer_data
from cni_py.netlink import socket as rtnl
from cni_py.netlink.attributes import decode, encode
from cni_py.netlink.constants import RTM_DELLINK
from cni_py.node.desired import DeviceAddress, Route, Sysctl, forwarding
from cni_py.node.stop import Stop
from support.stub_kernel import StubWireGuardDevice
from support.waiting import until

V4 = {"Network": "10.244.0.0/16"}
V6 = {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": "fd00:244::/48"}
DUAL = {"EnableIPv6": True, "Network": "10.244.0.0/16", "IPv6Network": "fd00:244::/48"}
HERE, HERE6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
THERE, THERE6 = IPv4Address("192.0.2.2"), IPv6Address("2001:db8::2")
EXTERNAL = ExternalInterface("eth0", 2, 1500, HERE, HERE6, HERE, HERE6)
KEYS = [bytes([number]) * 32 for number in range(1, 10)]


SOON_SECONDS = 15.0


def made(module: Any, network: dict[str, Any] = V4, external: ExternalInterface = EXTERNAL, **keys: Any) -> Any:
    """A back end of this Backend object."""
    config = NetworkConfig.parse(json.dumps({**network, "Backend": {"Type": module.TYPE, **keys}}))
    return backends.create(config, external)


def lease(number: int, kind: str, data: Any = None, data6: Any = None, v6: bool = True, **its: Any) -> Lease:
    """Node 1 is our own."""
    subnets = Subnets(IPv4Network(f"10.244.{number}.0/24"), IPv6Network(f"fd00:244:0:{number}::/64") if v6 else None)
    ends = {"public_ip": IPv4Address(f"192.0.2.{number}"), "public_ipv6": IPv6Address(f"2001:db8::{number}"), **its}
    return Lease(subnets, Attributes(backend_type=kind, backend_data=data, backend_v6_data=data6, **ends))


def faults_of(backend: Any, *leases: Lease) -> list[str]:
    """Return the warnings about these leases."""
    return [text for each in leases for _, text in backend.faults(each)]


def came(*leases: Lease) -> list[Any]:
    """Pass new peers to a back end."""
    return [(None, each) for each in leases]


def left(*leases: Lease) -> list[Any]:
    return [(each, None) for each in leases]


def without_sysctls(entries: Any) -> set[Any]:
    return {entry for entry in entries if not isinstance(entry, Sysctl)}


def key(number: int) -> str:
    return b64encode(KEYS[number]).decode()


UNUSABLE: list[Any] = [
    (ipip, DUAL, {}, "the ipip back end carries IPv4 alone"),
    (ipip, V6, {}, "the ipip back end carries IPv4 alone"),
    (
        vxlan,
        V4,
        {"MTU": 625},
        'an MTU of 575 bytes is too small for IPv4 pods: "Backend.MTU" is 625, of which the tunnel takes 50',
    ),
    (vxlan, DUAL, {"MTU": 1349}, "an MTU of 1279 bytes is too small for IPv6 pods"),
    (vxlan, V4, {"VNI": 10_000_000}, '"Backend.VNI": 10000000 is too large for IPv4: the device would be "flannel.10000000"'),
    (vxlan, V6, {"VNI": 10_000}, 'the device would be "flannel-v6.10000", and a name has 15 characters at most'),
    (
        wireguard,
        V4,
        {"MTU": 655},
        'an MTU of 575 bytes is too small for IPv4 pods: "Backend.MTU" is 655, of which the tunnel takes 80',
    ),
    (wireguard, DUAL, {"MTU": 1359}, "an MTU of 1279 bytes is too small for IPv6 pods"),
    (wireguard, V4, {"PSK": "x"}, '"Backend.PSK" is no WireGuard key'),
    (wireguard, DUAL, {"ListenPort": 51821}, '"Backend.ListenPort" and "Backend.ListenPortV6" are both 51821'),
    (extension, V4, {"PreStartupCommand": " "}, '"Backend.PreStartupCommand": Value error, it is no command'),
    (extension, V4, {"SubnetAddCommand": "a\0"}, '"Backend.SubnetAddCommand": Value error, it is no command'),
]
USABLE: list[Any] = [
    (ipip, V4, {}),
    (vxlan, V4, {"MTU": 626, "VNI": 9_999_999}),
    (vxlan, DUAL, {"MTU": 1350, "VNI": 9999}),
    (wireguard, V4, {"MTU": 656, "ListenPort": 51821}),
    (wireguard, DUAL, {"MTU": 1360}),
    (wireguard, DUAL, {"ListenPort": 51821, "Mode": "auto"}),
]


@pytest.mark.parametrize(("module", "network", "keys", "words"), UNUSABLE)
def test_what_no_node_could_use_is_reported_from_the_configuration_alone(
    module: Any, network: dict[str, Any], keys: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Report it by ``--check-config``, and in the same words where a node starts."""
    text = json.dumps({**network, "Backend": {"Type": module.TYPE, **keys}})
    (tmp_path / "net-conf.json").write_text(text)
    assert check_config(str(tmp_path / "net-conf.json")) == 1
    assert words in capsys.readouterr().err
    with pytest.raises(CniError, match=re.escape(words)):
        backends.create(NetworkConfig.parse(text), EXTERNAL)


@pytest.mark.parametrize(("module", "network", "keys"), USABLE)
def test_what_a_node_could_use_is_not_refused(module: Any, network: dict[str, Any], keys: dict[str, Any]) -> None:
    backends.check(NetworkConfig.parse(json.dumps({**network, "Backend": {"Type": module.TYPE, **keys}})))


# ---- udp --------------------------------------------------------------------------------------


def at(number: int) -> tuple[Any, ...]:
    """The socket address of the node with this number."""
    return f"192.0.2.{number}", 8285


def at6(number: int) -> tuple[Any, ...]:
    return f"2001:db8::{number}", 8285, 0, 2


def table_of(nodes: dict[Any, tuple[Any, ...]]) -> udp.Table:
    table = udp.Table()
    for subnet, node in nodes.items():
        table.put(subnet, node)
    return table


def test_udp_table_takes_the_longest_prefix() -> None:
    table = table_of(
        {
            IPv4Network("10.244.0.0/16"): at(1),
            IPv4Network("10.244.7.0/24"): at(2),
            IPv4Network("10.244.7.128/25"): at(3),
        }
    )
    found = {
        address: table.find(int(IPv4Address(address))) for address in ("10.244.7.1", "10.244.7.200", "10.244.8.1", "10.9.9.9")
    }
    assert found == {"10.244.7.1": at(2), "10.244.7.200": at(3), "10.244.8.1": at(1), "10.9.9.9": None}


def test_udp_table_of_ipv6_takes_the_longest_prefix() -> None:
    network = IPv6Network
    table = table_of(
        {network("fd00:244::/48"): at6(1), network("fd00:244:0:7::/64"): at6(2), network("fd00:244:0:7::80/126"): at6(3)}
    )
    addresses = ("fd00:244:0:7::1", "fd00:244:0:7::83", "fd00:244:0:7::84", "fd00:244:0:8::1", "fd00:245::1", "::1")
    found = [table.find(int(IPv6Address(address))) for address in addresses]
    assert found == [at6(2), at6(3), at6(2), at6(1), None, None]


def test_udp_table_of_the_default_route() -> None:
    assert table_of({IPv4Network("0.0.0.0/0"): at(1)}).find(0xFFFFFFFF) == at(1)
    assert table_of({IPv6Network("::/0"): at6(1)}).find((1 << 128) - 1) == at6(1)
    assert udp.Table().find(1) is None


def test_udp_table_that_changes() -> None:
    whole, part = IPv4Network("10.244.0.0/16"), IPv4Network("10.244.7.0/24")
    table, pod = table_of({whole: at(1), part: at(2)}), int(IPv4Address("10.244.7.1"))
    table.put(part, at(3))
    assert table.find(pod) == at(3)
    table.put(part, None)
    assert table.find(pod) == at(1)
    table.put(part, None)
    table.put(whole, None)
    assert table.find(pod) is None


@pytest.mark.parametrize(
    ("network", "published", "mtu", "listening"),
    [
        (V4, '{"PublicIP":"192.0.2.1","PublicIPv6":null}', 1472, [at(1)]),
        (V6, '{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1"}', 1452, [at6(1)]),
        (DUAL, '{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1"}', 1452, [at(1), at6(1)]),
    ],
)
def test_udp_lease_is_as_gos(
    monkeypatch: pytest.MonkeyPatch, network: dict[str, Any], published: str, mtu: int, listening: list[Any]
) -> None:
    class Nothing:
        def close(self) -> None: ...

    opened = []

    def open_socket(address: Any) -> Any:
        opened.append(address)
        return Nothing()

    monkeypatch.setattr(udp, "open_socket", open_socket)
    monkeypatch.setattr(udp.Tun, "ensure", lambda *_: None)
    backend = made(udp, network)
    backend.prepare(None, None)
    for _ in range(2):
        assert backend.attributes().as_json() == published
    assert backend.mtu == mtu
    assert opened == listening
    backend.close()


def test_tun_that_cannot_be_made_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next try, a second later, would find port and device taken by this one."""
    opened = [socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)]
    device, other_end = os.pipe()
    sockets = iter(opened)
    monkeypatch.setattr(udp, "open_socket", lambda _: next(sockets))
    monkeypatch.setattr(tun, "open_tun", lambda _: device)
    monkeypatch.setattr(tun, "find_link", lambda *_: None)
    backend, kernel = made(udp, DUAL), Kernel()
    with pytest.raises(KernelRefused, match='"flannel0" was deleted'):
        backend.prepare(kernel, None)
    backend.close()
    assert [each.fileno() for each in opened] == [-1, -1]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(device)
    os.close(other_end)


def test_tun_that_is_made_again_keeps_its_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that reads the number meanwhile must not get another file."""
    pipes = [os.pipe() for _ in range(2)]
    readers = iter(reader for reader, _ in pipes)
    monkeypatch.setattr(tun, "open_tun", lambda _: next(readers))
    monkeypatch.setattr(tun, "find_link", lambda *_: None)
    monkeypatch.setattr(tun, "found", lambda *_: None)
    monkeypatch.setattr(tun, "ensure_up", lambda *_: None)
    device, kernel = tun.Tun("flannel0", 1472), Kernel()
    fds = []
    for _, writer in pipes:
        device.ensure(kernel)  # type: ignore[arg-type]
        os.write(writer, bytes([len(fds)]))
        fds.append(device.fd)
        assert os.read(device.fd, 1) == bytes([len(fds) - 1])
    assert fds[0] == fds[1]
    device.close()
    with pytest.raises(KernelRefused, match="was closed"):
        device.ensure(kernel)  # type: ignore[arg-type]
    for _, writer in pipes:
        os.close(writer)


@pytest.mark.parametrize(("network", "families"), [(V4, [4]), (V6, [6]), (DUAL, [4, 6])])
def test_udp_wants_the_networks_on_its_device(network: dict[str, Any], families: list[int]) -> None:
    address = {4: IPv4Interface("10.244.1.0/32"), 6: IPv6Interface("fd00:244:0:1::/128")}
    whole: dict[int, Any] = {4: IPv4Network("10.244.0.0/16"), 6: IPv6Network("fd00:244::/48")}
    entries = made(udp, network).own_entries(lease(1, ""))
    assert {entry for entry in entries if entry in (forwarding(4), forwarding(6))} == set(map(forwarding, families))
    assert without_sysctls(entries) == {DeviceAddress("flannel0", address[family]) for family in families} | {
        Route(whole[family], "flannel0") for family in families
    }


def nodes_of(backend: Any) -> list[Any]:
    """The subnets of the nodes 1 to 6, by each family in use."""
    pods: dict[int, list[Any]] = {
        4: [IPv4Address(f"10.244.{number}.9") for number in range(1, 7)],
        6: [IPv6Address(f"fd00:244:0:{number}::9") for number in range(1, 7)],
    }
    return [table.find(int(pod)) for family, table in backend._tables.items() for pod in pods[family]]


PEERS = [
    *(lease(1, ""), lease(2, ""), lease(3, "udp"), lease(4, "vxlan")),
    *(lease(5, "", public_ip=None), lease(6, "", public_ipv6=None)),
]
NODES4, NODES6 = [None, at(2), at(3), None, None, at(6)], [None, at6(2), at6(3), None, at6(5), None]


@pytest.mark.parametrize(("network", "nodes"), [(V4, NODES4), (V6, NODES6), (DUAL, NODES4 + NODES6)], ids=["v4", "v6", "dual"])
def test_udp_takes_peers_of_its_kind_only(network: dict[str, Any], nodes: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """A node without a public address of a family has the other family alone."""
    backend = made(udp, network)
    assert nodes_of(backend) == [None] * len(nodes)
    backend.follow(PEERS[0], came(*PEERS[1:]))
    assert nodes_of(backend) == nodes
    log = capfd.readouterr().err
    once = [4 in backend.networks, 6 in backend.networks]
    faults = " ".join(faults_of(backend, *PEERS[1:]))
    ignored = [faults.count(f"Ignoring non-udp subnet {each}: type=vxlan") for each in ("10.244.4.0/24", "fd00:244:0:4::/64")]
    added = [log.count(f"Subnet added: {way}") for way in ("10.244.2.0/24 via 192.0.2.2", "fd00:244:0:2::/64 via 2001:db8::2")]
    assert (ignored, added) == (once, once)
    backend.follow(PEERS[0], left(*PEERS[1:]))
    assert nodes_of(backend) == [None] * len(nodes)
    log = capfd.readouterr().err
    assert [log.count(f"Subnet removed: {subnet}") for subnet in ("10.244.2.0/24", "fd00:244:0:2::/64")] == once


def test_udp_peer_with_an_address_of_the_link_alone_is_reached_by_the_external_interface() -> None:
    backend = made(udp, V6)
    backend.follow(lease(1, ""), came(lease(2, "", public_ipv6=IPv6Address("fe80::2"))))
    assert nodes_of(backend)[1] == ("fe80::2", 8285, 0, EXTERNAL.ifindex)


@pytest.mark.parametrize(
    ("network", "addr", "addr6", "missing"),
    [(V4, None, HERE6, "IPv4"), (V6, HERE, None, "IPv6"), (DUAL, HERE, None, "IPv6"), (DUAL, None, HERE6, "IPv4")],
)
def test_udp_needs_an_address_of_each_family(network: dict[str, Any], addr: Any, addr6: Any, missing: str) -> None:
    with pytest.raises(InvalidConfig, match=f"eth0 has no {missing} address to listen at"):
        made(udp, network, ExternalInterface("eth0", 2, 1500, addr, addr6, HERE, HERE6))


def test_udp_address_in_words() -> None:
    assert [udp.in_words(address) for address in (at(7), at6(7))] == ["192.0.2.7:8285", "[2001:db8::7]:8285"]


@pytest.mark.parametrize("network", [V6, DUAL])
def test_ipip_refuses_ipv6(network: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedField, match="carries IPv4 alone"):
        made(ipip, network)


@pytest.mark.parametrize(
    ("module", "keys"),
    [
        (udp, {"Port": 0}),
        (udp, {"Port": "8285"}),
        (udp, {"Port": 65536}),
        (ipip, {"DirectRouting": "yes"}),
        (extension, {"SubnetAddCommand": ["ip", "route"]}),
        (wireguard, {"Mode": "both"}),
        (wireguard, {"PersistentKeepaliveInterval": -1}),
        (wireguard, {"listenport": 70000}),
    ],
)
def test_wrong_key_is_refused_by_name(module: Any, keys: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match=r"Backend\.\w"):
        made(module, **keys)


@pytest.mark.parametrize(
    ("module", "network", "mtu"),
    [(udp, V4, 604), (udp, V6, 1328), (udp, DUAL, 1328), (ipip, V4, 596), (wireguard, V4, 656)],
)
def test_mtu_too_small_for_the_tunnel_is_refused(module: Any, network: dict[str, Any], mtu: int) -> None:
    smallest = ExternalInterface("eth0", 2, mtu, HERE, HERE6, HERE, HERE6)
    made(module, network, smallest)
    with pytest.raises(InvalidConfig, match="too small"):
        made(module, network, replace(smallest, mtu=mtu - 1))


# ---- extension --------------------------------------------------------------------------------


def test_extension_publishes_what_the_first_command_prints(capfd: pytest.CaptureFixture[str]) -> None:
    backend = made(extension, DUAL, PreStartupCommand="sh -c 'echo aa:bb; echo careful >&2'")
    backend.prepare(None, None)
    assert backend.attributes().as_json() == (
        '{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"extension","BackendData":"aa:bb"}'
    )
    assert backend.attributes().backend_data == "aa:bb"
    log = capfd.readouterr().err
    assert log.count("Ran command: sh -c") == 1
    assert "Output: aa:bb; careful" in log


def test_extension_without_commands(capfd: pytest.CaptureFixture[str]) -> None:
    backend, own = made(extension), lease(1, "extension")
    backend.prepare(None, None)
    assert backend.attributes() == Attributes(public_ip=HERE, backend_type="extension")
    assert backend.mtu == 1500
    assert list(backend.own_entries(own)) == list(backend.peer_entries(lease(2, "extension"))) == []
    backend.follow(own, came(lease(2, "extension")))
    backend.settle(threading.Event())
    backend.cleanup()
    assert "No pre startup command configured - skipping" in capfd.readouterr().err


def written(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def teller(path: Path, what: str) -> str:
    """A command that writes down its input."""
    names = ("NETWORK", "SUBNET", "IPV6SUBNET", "PUBLIC_IP", "PUBLIC_IPV6")
    values = " ".join(f"{name}=${{{name}-unset}}" for name in names)
    return f"sh -c 'read -r data; echo {what} {values} data=$data >>{path}'"


def test_extension_commands_get_the_nodes(tmp_path: Path) -> None:
    log, stop = tmp_path / "log", threading.Event()
    backend = made(
        extension,
        PostStartupCommand=teller(log, "post"),
        SubnetAddCommand=teller(log, "add"),
        SubnetRemoveCommand=teller(log, "remove"),
        ShutdownCommand=teller(log, "shutdown"),
    )
    own, second, third = (
        lease(1, "extension", "ours"),
        lease(2, "extension", "key 2"),
        lease(3, "extension", v6=False, public_ipv6=None),
    )
    backend.follow(own, came(second, third))
    backend.settle(stop)
    another = (second, lease(2, "extension", "another"))
    backend.follow(own, [another, *came(lease(4, "vxlan", {"VNI": 1})), *left(third)])
    backend.settle(stop)
    backend.settle(stop)
    backend.cleanup()
    assert written(log) == [
        "post NETWORK=10.244.0.0/16 SUBNET=10.244.1.0/24 IPV6SUBNET=fd00:244:0:1::/64 PUBLIC_IP=192.0.2.1 PUBLIC_IPV6=2001:db8::1 data=",
        "add NETWORK=unset SUBNET=10.244.2.0/24 IPV6SUBNET=fd00:244:0:2::/64 PUBLIC_IP=192.0.2.2 PUBLIC_IPV6=2001:db8::2 data=key 2",
        "add NETWORK=unset SUBNET=10.244.3.0/24 IPV6SUBNET= PUBLIC_IP=192.0.2.3 PUBLIC_IPV6= data=",
        "remove NETWORK=unset SUBNET=10.244.2.0/24 IPV6SUBNET=fd00:244:0:2::/64 PUBLIC_IP=192.0.2.2 PUBLIC_IPV6=2001:db8::2 data=key 2",
        "remove NETWORK=unset SUBNET=10.244.3.0/24 IPV6SUBNET= PUBLIC_IP=192.0.2.3 PUBLIC_IPV6= data=",
        "add NETWORK=unset SUBNET=10.244.2.0/24 IPV6SUBNET=fd00:244:0:2::/64 PUBLIC_IP=192.0.2.2 PUBLIC_IPV6=2001:db8::2 data=another",
        "shutdown NETWORK=unset SUBNET=unset IPV6SUBNET=unset PUBLIC_IP=unset PUBLIC_IPV6=unset data=",
    ]


def test_extension_run_follows_until_it_is_stopped(tmp_path: Path) -> None:
    log, stop = tmp_path / "log", Stop()
    backend, own = made(extension, SubnetAddCommand=teller(log, "add")), lease(1, "extension")
    thread = threading.Thread(target=backend.run, args=(stop,))
    thread.start()
    backend.follow(own, came(lease(2, "extension")))
    until(lambda: written(log), "the command has run")
    stop.set()
    thread.join(10)
    assert len(written(log)) == 1
    assert not thread.is_alive()


def test_extension_words_and_variables_without_a_shell(capfd: pytest.CaptureFixture[str]) -> None:
    variables = {"SUBNET": "10.244.2.0/24", "PUBLIC_IP": "192.0.2.2; reboot"}
    command = """printf '<%s>' "$SUBNET" via "${PUBLIC_IP}" '$HOME' $SUBNETS"""
    assert extension.run_command(command, variables) == "<10.244.2.0/24><via><192.0.2.2; reboot><$HOME><$SUBNETS>"
    capfd.readouterr()


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("export VNI=1; ip link add x type vxlan", '";" is for a shell'),
        ("ip link add x && true", '"&" is for a shell'),
        ("wg genkey | wg pubkey", '"|" is for a shell'),
        ("echo $(date)", r'"\(" is for a shell|"\$\(" is for a shell'),
        ("ip link del x 2>/dev/null", '">" is for a shell'),
        ("echo 'no end", "No closing quotation"),
    ],
)
def test_extension_refuses_what_needs_a_shell(command: str, why: str) -> None:
    with pytest.raises(InvalidConfig, match=why):
        made(extension, PostStartupCommand=command)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ('ip route add "$SUBNET" via "$PUBLIC_IP"', "<route><add><10.244.2.0/24><via><192.0.2.2>"),
        ("sh -c 'read VTEP; ip route add $SUBNET && echo \"$VTEP\"'", "<route><add><10.244.2.0/24>of the peer"),
        ('ip neigh \\; "a;b"', "<neigh><;><a;b>"),
    ],
)
def test_extension_takes_the_documented_example_and_quoted_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, said: str
) -> None:
    """Run it as it was written, with an ``ip`` that prints its arguments."""
    ip, peer = tmp_path / "ip", lease(2, "extension")
    ip.write_text("#!/bin/sh\nprintf '<%s>' \"$@\"\n")
    ip.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    config = made(extension, SubnetAddCommand=command).config
    variables = extension.variables_of(peer.subnets, peer.attributes)
    assert extension.run_command(config.subnet_add_command, variables, "of the peer") == said


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("sh -c 'echo out; echo err >&2; exit 3'", "exit status 3 Output: out\nerr"),
        ("sh -c 'kill -9 $$'", "killed by signal 9"),
        ("/no/such/program", 'could not run "/no/such/program": No such file'),
    ],
)
def test_extension_first_commands_must_work(command: str, why: str) -> None:
    own = lease(1, "extension")
    with pytest.raises(extension.CommandFailed, match=why):
        made(extension, PreStartupCommand=command).prepare(None, None)
    backend = made(extension, PostStartupCommand=command)
    for _ in range(2):  # and is tried again
        with pytest.raises(extension.CommandFailed, match=why):
            backend.follow(own, [])


def test_extension_failed_command_for_a_peer_stops_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "log"
    command = f"sh -c 'echo $SUBNET >>{log}; exit 1'"
    backend, own = made(extension, SubnetAddCommand=command), lease(1, "extension")
    backend.follow(own, came(lease(2, "extension"), lease(3, "extension", {"no": "text"}), lease(4, "extension")))
    backend.settle(threading.Event())
    backend.settle(threading.Event())
    assert written(log) == ["10.244.2.0/24", "10.244.4.0/24"]
    assert "failed to unmarshal BackendData" in capfd.readouterr().err


def test_extension_command_that_hangs_is_killed_with_what_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "TIMEOUT_SECONDS", 0.3)
    ready = tmp_path / "ready"
    began = time.monotonic()
    with pytest.raises(extension.CommandFailed, match=r"not done after 0\.3 s, killed"):
        extension.run_command(f"sh -c 'sleep 60 & echo $! >{ready}; wait'", {})
    assert time.monotonic() - began < SOON_SECONDS
    command_line = Path(f"/proc/{ready.read_text().strip()}/cmdline")
    # a killed process goes in its own time; without a command line it waits for its parent to look
    until(lambda: not command_line.exists() or not command_line.read_bytes(), "what it started has ended")


def test_extension_does_not_wait_for_what_a_command_leaves_running(capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    assert extension.run_command("sh -c 'sleep 30 & echo started'", {}) == "started"
    assert time.monotonic() - began < SOON_SECONDS
    capfd.readouterr()


# ---- ipip -------------------------------------------------------------------------------------


def entries_of(backend: Any, *leases: Lease) -> list[Any]:
    """Entries for the nodes of these."""
    return [entry for each in leases for _, entries in backend.peer_entries(each) for entry in entries]


def test_ipip_wants_a_route_to_each_peer() -> None:
    backend = made(ipip)
    assert without_sysctls(backend.own_entries(lease(1, "ipip", v6=False))) == {
        DeviceAddress("flannel.ipip", IPv4Interface("10.244.1.0/32"))
    }
    assert entries_of(backend, lease(2, "ipip"), lease(3, "vxlan")) == [
        Route(IPv4Network("10.244.2.0/24"), "flannel.ipip", THERE, onlink=True)
    ]
    assert faults_of(backend, lease(3, "vxlan")) == ["Ignoring non-ipip subnet 10.244.3.0/24: type=vxlan; not reached"]


def test_ipip_direct_routing_goes_by_the_external_interface() -> None:
    backend = made(ipip)
    backend._on_link = [IPv4Network("192.0.2.0/30")]
    assert entries_of(backend, lease(2, "ipip"), lease(9, "ipip")) == [
        Route(IPv4Network("10.244.2.0/24"), "eth0", THERE),
        Route(IPv4Network("10.244.9.0/24"), "flannel.ipip", IPv4Address("192.0.2.9"), onlink=True),
    ]


# ---- devices ----------------------------------------------------------------------------------


class Kernel:
    """A stub of an rtnetlink socket: it knows links by name, and refuses unknown kinds."""

    enter: tuple[str, ...] = ()

    def __init__(self, *known: str) -> None:
        self.known, self.links, self.requests = known, dict[str, bytes](), list[int]()

    def get(self, question: bytes, kind: int) -> bytes:
        name = decode("ifinfmsg", question)["IFLA_IFNAME"]
        if name not in self.links:
            raise rtnl.NetlinkError(errno.ENODEV, "No such device")
        return self.links[name]

    def change(self, message: bytes, kind: int, flags: int = 0) -> None:
        self.requests.append(kind)
        found = decode("ifinfmsg", message)
        if kind == RTM_DELLINK:
            del self.links[found["IFLA_IFNAME"]]
        elif "IFLA_IFNAME" in found:
            if found["IFLA_LINKINFO"]["IFLA_INFO_KIND"] not in self.known:
                raise rtnl.NetlinkError(errno.EOPNOTSUPP, "Unknown device type (Operation not supported)")
            self.links[found["IFLA_IFNAME"]] = encode("ifinfmsg", found | {"index": 7 + len(self.requests)})


@pytest.mark.parametrize(("kind", "feature"), [("ipip", "CONFIG_NET_IPIP"), ("wireguard", "CONFIG_WIREGUARD")])
def test_device_that_the_kernel_lacks_is_refused_by_name(kind: str, feature: str) -> None:
    with pytest.raises(NotAvailable, match=rf"this kernel has no [^(]* \({feature}\).*modprobe {kind}"):
        device.ensure_device(Kernel("vxlan"), "flannel.x", kind, 1480)  # type: ignore[arg-type]


def test_device_is_kept_while_it_is_as_wanted_and_created_again_where_not() -> None:
    kernel: Any = Kernel("ipip")
    first = device.ensure_device(kernel, "flannel.ipip", "ipip", 1480, device_data(HERE))
    again = device.ensure_device(kernel, "flannel.ipip", "ipip", 1480, device_data(HERE))
    assert (first.ifindex, first.kind, first.mtu) == (again.ifindex, "ipip", 1480)
    assert RTM_DELLINK not in kernel.requests
    other = device.ensure_device(kernel, "flannel.ipip", "ipip", 1480, device_data(THERE))
    assert other.ifindex != first.ifindex
    assert kernel.requests.count(RTM_DELLINK) == 1


def test_device_of_another_kind_is_left_to_its_owner() -> None:
    kernel: Any = Kernel("ipip", "bridge")
    device.ensure_device(kernel, "flannel.ipip", "bridge", 1500)
    with pytest.raises(KernelRefused, match=r"isn't a device of kind ipip.*ip -d link show flannel\.ipip"):
        device.ensure_device(kernel, "flannel.ipip", "ipip", 1480)
    assert RTM_DELLINK not in kernel.requests


# ---- wireguard --------------------------------------------------------------------------------


def wg(number: int, port: int | None = None) -> dict[str, Any]:
    return {"PublicKey": key(number), **({} if port is None else {"Port": port})}


@pytest.mark.parametrize(
    ("network", "mode", "devices"),
    [
        (V4, "separate", {"flannel-wg": [4]}),
        (V6, "separate", {"flannel-wg-v6": [6]}),
        (DUAL, "separate", {"flannel-wg": [4], "flannel-wg-v6": [6]}),
        (DUAL, "auto", {"flannel-wg": [4, 6]}),
        (V4, "ipv6", {"flannel-wg": [4]}),
    ],
)
def test_wireguard_wants_the_network_on_its_devices(network: dict[str, Any], mode: str, devices: dict[str, list[int]]) -> None:
    own = lease(1, "wireguard")
    address = {4: IPv4Interface("10.244.1.0/32"), 6: IPv6Interface("fd00:244:0:1::/128")}
    whole: dict[int, Any] = {4: IPv4Network("10.244.0.0/16"), 6: IPv6Network("fd00:244::/48")}
    pairs = [(name, version) for name, versions in devices.items() for version in versions]
    backend = made(wireguard, network, Mode=mode)
    assert backend.mtu == 1420
    assert without_sysctls(backend.own_entries(own)) == {
        *(DeviceAddress(name, address[version]) for name, version in pairs),
        *(Route(whole[version], name) for name, version in pairs),
    }


def peers_after(backend: Any, *changes: Any) -> dict[str, dict[bytes, Peer]]:
    """Peers of the devices after these changes, one after the other."""
    backend._devices = backend._devices or {name: StubWireGuardDevice() for name in set(backend.names.values())}
    for change in changes:
        backend.follow(lease(1, "wireguard"), change)
    return {name: dict(device.peers) for name, device in backend._devices.items()}


def test_wireguard_separate_devices_have_a_peer_a_family() -> None:
    two = lease(2, "wireguard", wg(2, 4000), wg(2))
    assert peers_after(made(wireguard, DUAL, PersistentKeepaliveInterval=25), came(two)) == {
        "flannel-wg": {KEYS[2]: Peer(KEYS[2], THERE, 4000, (IPv4Network("10.244.2.0/24"),), 25)},
        "flannel-wg-v6": {KEYS[2]: Peer(KEYS[2], THERE6, 51821, (IPv6Network("fd00:244:0:2::/64"),), 25)},
    }


def test_wireguard_node_that_moves_is_a_peer_for_both_subnets_and_where_the_newer_lease_says() -> None:
    newer, older = lease(3, "wireguard", wg(2, 4000)), lease(2, "wireguard", wg(2, 5000))
    peer = Peer(KEYS[2], IPv4Address("192.0.2.3"), 4000, (IPv4Network("10.244.3.0/24"), IPv4Network("10.244.2.0/24")))
    backend = made(wireguard, V4)
    assert peers_after(backend, came(older), came(newer)) == {"flannel-wg": {KEYS[2]: peer}}
    assert peers_after(backend, left(older)) == {"flannel-wg": {KEYS[2]: replace(peer, allowed=peer.allowed[:1])}}
    assert peers_after(backend, left(newer)) == {"flannel-wg": {}}
    assert backend._claims == {}


PRIVATE, PUBLIC = IPv4Address("10.0.0.2"), IPv4Address("198.51.100.2")
PRIVATE6, PUBLIC6 = IPv6Address("fd00::2"), IPv6Address("2001:db8::2")


@pytest.mark.parametrize(
    ("mode", "address", "address6", "chosen"),
    [
        ("ipv4", PRIVATE, PUBLIC6, PRIVATE),
        ("ipv6", PUBLIC, PUBLIC6, PUBLIC6),
        ("auto", PUBLIC, PUBLIC6, PUBLIC),
        ("auto", PRIVATE, PUBLIC6, PUBLIC6),
        ("auto", PRIVATE, PRIVATE6, PRIVATE),
        ("auto", PRIVATE, None, PRIVATE),
    ],
)
def test_wireguard_one_device_chooses_the_outer_family(mode: str, address: Any, address6: Any, chosen: Any) -> None:
    its = lease(2, "wireguard", wg(2, 4000), wg(2, 5000), public_ip=address, public_ipv6=address6)
    peers = peers_after(made(wireguard, DUAL, Mode=mode), came(its))
    allowed = (IPv4Network("10.244.2.0/24"), IPv6Network("fd00:244:0:2::/64"))
    assert peers == {"flannel-wg": {KEYS[2]: Peer(KEYS[2], chosen, 4000, allowed)}}


@pytest.mark.parametrize(
    "its",
    [
        lease(2, "wireguard"),
        lease(2, "wireguard", "text"),
        lease(2, "wireguard", {"PublicKey": "AAAA"}),
        lease(2, "wireguard", {"PublicKey": key(2), "Port": "51820"}),
        lease(2, "wireguard", {"PublicKey": key(2), "Port": True}),
        lease(2, "wireguard", wg(2), public_ip=None),
        lease(2, "vxlan", wg(2)),
    ],
)
def test_wireguard_lease_that_makes_no_peer_is_said_and_left_out(its: Lease) -> None:
    backend, good = made(wireguard), lease(3, "wireguard", wg(3))
    assert list(peers_after(backend, came(its, good))["flannel-wg"]) == [KEYS[3]]
    [fault] = faults_of(backend, its)
    assert "10.244.2.0/24" in fault
    assert "not reached" in fault
    assert not faults_of(backend, good)


def test_wireguard_peer_is_encoded_as_others_read_it() -> None:
    from pyroute2.netlink.generic.wireguard import wgmsg

    networks = (IPv4Network("10.244.2.0/24"), IPv6Network("fd00:244:0:2::/64"))
    for address in (THERE, THERE6):
        data = encode("wgdevice_peer", peer_data(Peer(KEYS[2], address, 51820, networks, 25), KEYS[7]))
        message = wgmsg.wgdevice_peer(pack("=HH", len(data) + 4, 0) + data)
        message.length = len(data) + 4
        message.decode()
        found = dict(message["attrs"])
        assert found["WGPEER_A_PUBLIC_KEY"] == b64encode(KEYS[2])
        assert found["WGPEER_A_PRESHARED_KEY"] == b64encode(KEYS[7])
        assert found["WGPEER_A_FLAGS"] == 2
        assert (found["WGPEER_A_ENDPOINT"]["addr"], found["WGPEER_A_ENDPOINT"]["port"]) == (str(address), 51820)
        assert found["WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL"] == 25
        assert [allowed["addr"] for allowed in found["WGPEER_A_ALLOWEDIPS"]] == [str(network) for network in networks]


class FakeWireGuard:
    """A stub of ``kernel.wireguard.WireGuard``, which records its calls."""

    calls: list[Any]
    present: ClassVar[dict[bytes, Any]] = {}
    """The device's peers, as WireGuard.list_peers returns them."""

    def __enter__(self) -> FakeWireGuard:
        return self

    def __exit__(self, *_: object) -> None: ...

    def set_device(self, name: str, private_key: bytes, port: int) -> bytes:
        self.calls.append(("device", name, port))
        return KEYS[0]

    def list_peers(self, name: str) -> dict[bytes, Any]:
        self.calls.append(("list", name))
        return self.present

    def set_peers(self, name: str, peers: Any, psk: bytes = b"") -> None:
        self.calls.append(("peers", name, [KEYS.index(peer.public_key) for peer in peers]))

    def remove_peer(self, name: str, public_key: bytes) -> None:
        self.calls.append(("remove", name, KEYS.index(public_key)))


def test_wireguard_sends_the_kernel_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel: Any = Kernel("wireguard")
    calls = FakeWireGuard.calls = []
    monkeypatch.setattr(kernel_wireguard, "WireGuard", FakeWireGuard)
    monkeypatch.setenv("WIREGUARD_KEY_FILE", f"{tmp_path}/keys/wgkey")
    backend, own = made(wireguard), lease(1, "wireguard", wg(0))
    backend.prepare(kernel, None)
    for _ in range(2):
        assert backend.attributes().backend_data == {"PublicKey": key(0), "Port": 51820}
    second, third, moved = lease(2, "wireguard", wg(2)), lease(3, "wireguard", wg(3)), lease(2, "wireguard", wg(2, 4000))
    backend.follow(own, came(second))
    backend.follow(own, came(third))
    backend.follow(own, [])
    backend.follow(own, [(second, moved), *left(third)])
    kernel.links.clear()  # another process deletes the device
    for kept in 2 * backend.devices:
        kept.ensure(kernel)
    assert calls == [
        ("device", "flannel-wg", 51820),
        ("list", "flannel-wg"),
        ("peers", "flannel-wg", [2]),
        ("peers", "flannel-wg", [3]),
        ("peers", "flannel-wg", [2]),
        ("remove", "flannel-wg", 3),
        ("device", "flannel-wg", 51820),
        ("list", "flannel-wg"),
        ("peers", "flannel-wg", [2]),
    ]


def test_wireguard_device_that_is_reused_keeps_the_sessions_of_its_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that is as desired is not sent again; none is removed to be added again."""
    kernel: Any = Kernel("wireguard")
    calls = FakeWireGuard.calls = []
    monkeypatch.setattr(kernel_wireguard, "WireGuard", FakeWireGuard)
    networks = (IPv4Network("10.1.2.0/24"), IPv6Network("fd00:1::/64"))
    peers = [Peer(KEYS[number], THERE, 51820, networks, 25) for number in range(2, 8)]
    present = {peer.public_key: kernel_wireguard.peer_data(peer, KEYS[1]) for peer in [*peers[:5], Peer(KEYS[8], THERE, 1, ())]}
    for peer in present.values():
        del peer["WGPEER_A_FLAGS"]  # which the kernel does not return; counters it does
        peer |= {"WGPEER_A_RX_BYTES": 7, "WGPEER_A_PROTOCOL_VERSION": 1}
    present[KEYS[2]]["WGPEER_A_ALLOWEDIPS"].reverse()
    present[KEYS[3]]["WGPEER_A_ALLOWEDIPS"].pop()
    present[KEYS[4]]["WGPEER_A_PRESHARED_KEY"] = bytes(32)
    present[KEYS[5]]["WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL"] = 0
    present[KEYS[6]]["WGPEER_A_ENDPOINT"] = kernel_wireguard.peer_data(Peer(KEYS[6], THERE, 4000, ()), b"")["WGPEER_A_ENDPOINT"]
    monkeypatch.setattr(FakeWireGuard, "present", present)
    device = kernel_wireguard.WireGuardDevice("flannel-wg", 1420, 51820, KEYS[0], KEYS[1])
    device.ensure(kernel)
    device.set_peers(peers)
    assert calls[1:] == [("list", "flannel-wg"), ("peers", "flannel-wg", [3, 4, 5, 6, 7]), ("remove", "flannel-wg", 8)]


def test_wireguard_peers_of_a_long_answer_are_put_together() -> None:
    """The kernel continues a peer in its next message."""
    first, second = (Peer(KEYS[2], THERE, 51820, (IPv4Network(network),)) for network in ("10.1.0.0/24", "10.2.0.0/24"))
    rest = {
        "WGPEER_A_PUBLIC_KEY": KEYS[2],
        "WGPEER_A_ALLOWEDIPS": kernel_wireguard.peer_data(second, b"")["WGPEER_A_ALLOWEDIPS"],
    }
    answers = [
        encode("wgmsg", {"cmd": 0, "version": 1, "WGDEVICE_A_PEERS": [peer]})
        for peer in (kernel_wireguard.peer_data(first, b""), rest)
    ]
    kernel = kernel_wireguard.WireGuard.__new__(kernel_wireguard.WireGuard)
    kernel._netlink = SimpleNamespace(dump=lambda _: answers)  # type: ignore[assignment]
    both = Peer(KEYS[2], THERE, 51820, (IPv4Network("10.2.0.0/24"), IPv4Network("10.1.0.0/24")))
    assert kernel_wireguard._is_as(kernel.list_peers("flannel-wg")[KEYS[2]], both, b"")


def test_wireguard_peers_that_the_kernel_refuses_are_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Say, while the device is away."""
    kernel: Any = Kernel("wireguard")
    calls = FakeWireGuard.calls = []
    monkeypatch.setattr(kernel_wireguard, "WireGuard", FakeWireGuard)
    device = kernel_wireguard.WireGuardDevice("flannel-wg", 1420, 51820, KEYS[1])
    device.ensure(kernel)
    peer = Peer(KEYS[2], THERE, 51820, ())
    device.set_peers([peer])
    with monkeypatch.context() as patch:
        patch.setattr(FakeWireGuard, "remove_peer", lambda *_: (_ for _ in ()).throw(KernelRefused("no such device")))
        with pytest.raises(KernelRefused):
            device.set_peers([], [KEYS[2]])
    del calls[:]
    device.ensure(kernel)
    assert calls == [("remove", "flannel-wg", 2)]


@pytest.mark.parametrize(("name", "key"), [("flannel-wg", "Backend.ListenPort"), ("flannel-wg-v6", "Backend.ListenPortV6")])
def test_wireguard_port_that_is_taken_is_named_with_its_owner(name: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Taken:
        def __enter__(self) -> Taken:
            return self

        def __exit__(self, *_: object) -> None: ...

        def set_device(self, *_: object) -> bytes:
            raise KernelRefused("wg set failed", "Address already in use", errno=errno.EADDRINUSE)

    monkeypatch.setattr(kernel_wireguard, "WireGuard", Taken)
    monkeypatch.setattr(kernel_wireguard, "ensure_device", lambda *_: SimpleNamespace(ifindex=7))
    monkeypatch.setattr(udp_port, "owner_of", lambda _, port, but: f"sshd, which has {port} and is not {but}")
    host: Any = None
    with pytest.raises(KernelRefused, match=f"UDP port 51820 is taken by sshd, which has 51820 and is not {name}") as caught:
        kernel_wireguard.WireGuardDevice(name, 1420, 51820, bytes(32)).ensure(host)
    assert f'"{key}"' in caught.value.hint


def test_wireguard_key_is_made_once_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "flannel" / "wgkey"
    made_key = wireguard.read_or_make_key(str(path))
    assert wireguard.read_or_make_key(str(path)) == made_key
    assert path.stat().st_mode & 0o777 == 0o400
    assert (made_key[0] & 7, made_key[31] & 0xC0) == (0, 0x40)
    assert path.read_text().strip() == b64encode(made_key).decode()


def test_wireguard_wrong_key_is_refused_without_showing_it(tmp_path: Path) -> None:
    path = tmp_path / "wgkey"
    path.write_text("c2VjcmV0\n")
    with pytest.raises(InvalidConfig, match="is no WireGuard key") as refused:
        wireguard.read_or_make_key(str(path))
    assert "c2VjcmV0" not in str(refused.value)
    with pytest.raises(InvalidConfig, match=r'"Backend\.PSK" is no WireGuard key') as refused:
        made(wireguard, PSK="c2VjcmV0")
    assert "c2VjcmV0" not in str(refused.value)
