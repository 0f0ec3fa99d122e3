"""Decisions of main plugins and static before any change: links, routes, addresses, and the sentences of what they refuse."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import pytest

from cni_py import config
from cni_py.attachment import record
from cni_py.config import models
from cni_py.errors import CniError, InvalidConfig
from cni_py.kernel import sysfs, tap, virtual_link
from cni_py.kernel.link import Link
from cni_py.plugin_table import PLUGINS
from cni_py.plugins.ipam import static
from cni_py.plugins.main import dummy, host_device, ipvlan, macvlan, ptp, vlan
from cni_py.plugins.main import tap as tap_plugin
from cni_py.spec.call import Call
from cni_py.spec.result import IPConfig, from_json

HOST_LOCAL = {"type": "host-local", "subnet": "10.1.0.0/24"}


def parsed(plugin: str, **keys: Any) -> Any:
    return config.parse(PLUGINS[plugin].model, {"name": "net", "type": plugin} | keys)


def call(plugin: str, *args: tuple[str, ...], version: str = "1.1.0") -> Call:
    return Call("ADD", plugin, "c1", "/run/netns/c1", "eth0", args=args, conf={"name": "net", "cniVersion": version})


# --- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (macvlan.wanted(call("macvlan"), parsed("macvlan")), "macvlan mode bridge"),
        (
            macvlan.wanted(call("macvlan"), parsed("macvlan", mode="passthru", bcqueuelen=200)),
            "macvlan mode passthru bcqueuelen 200",
        ),
        (ipvlan.wanted(parsed("ipvlan")), "ipvlan mode l2"),
        (ipvlan.wanted(parsed("ipvlan", mode="l3s")), "ipvlan mode l3s"),
        (virtual_link.vlan(100), "vlan id 100"),
        (virtual_link.dummy(), "dummy"),
    ],
)
def test_link_is_as_ip_link_shows_it(new: virtual_link.NewLink, words: str) -> None:
    """Details of a link as the recorded cases have them: the mode, bcqueuelen and id of `ip -d link`."""
    assert " ".join([new.kind, *new.words]) == words


@pytest.mark.parametrize(
    ("given", "mac"),
    [
        ({"mac": "c2:11:22:33:44:01"}, "c2:11:22:33:44:01"),
        ({"mac": "C2-11-22-33-44-01", "args": (("MAC", "c2:11:22:33:44:02"),)}, "c2:11:22:33:44:02"),
        ({"mac": "x", "args": (("MAC", "y"),), "runtimeConfig": {"mac": "c2:11:22:33:44:03"}}, "c2:11:22:33:44:03"),
        ({}, ""),
    ],
)
@pytest.mark.parametrize("plugin", ["macvlan", "tap"])
def test_mac_of_the_capability_before_args_before_the_configuration(plugin: str, given: dict[str, Any], mac: str) -> None:
    from cni_py.attachment import sandbox_link

    args = given.get("args", ())
    keys = {key: value for key, value in given.items() if key != "args"}
    assert sandbox_link.mac_of(call(plugin, *args), parsed(plugin, **keys)) == mac


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "mode tap"),
        ({"multiQueue": True}, "mode tap multi_queue"),
        ({"owner": 1000}, "mode tap user 1000"),
        ({"owner": 0, "group": 0}, "mode tap pi vnet_hdr user 0 group 0"),
        ({"owner": 1000, "group": 1001, "multiQueue": True}, "mode tap vnet_hdr multi_queue user 1000 group 1001"),
        ({"owner": 1000, "group": 1001, "selinuxContext": "a:b:c:s0"}, "mode tap user 1000 group 1001"),
    ],
)
def test_tap_has_the_headers_that_the_go_plugin_gives_it(keys: dict[str, Any], words: str) -> None:
    assert " ".join(tap_plugin.wanted(parsed("tap", **keys)).words) == words


def test_link_of_another_kind_is_no_tap() -> None:
    data = {"IFLA_TUN_TYPE": 1}
    assert tap.tap_of(Link(1, "a", "tun", "", 1500, 0, 0, 0, "UP", "", False, False, None, data=data)) is None


# --- what is refused --------------------------------------------------------------------------------------------------

REFUSED = {
    "macvlan mode": (
        lambda: macvlan.wanted(call("macvlan"), parsed("macvlan", mode="Bridge")),
        'unknown macvlan mode: "Bridge"',
    ),
    "macvlan mac": (lambda: macvlan.wanted(call("macvlan"), parsed("macvlan", mac="zz")), "invalid args zz for MAC addr: "),
    "ipvlan mode": (lambda: ipvlan.wanted(parsed("ipvlan", mode="l4")), 'unknown ipvlan mode: "l4"'),
    "ipvlan chain": (
        lambda: ipvlan.master_in(from_json({"cniVersion": "1.0.0", "interfaces": [{"name": "a"}, {"name": "b"}]})),
        "chained master failure. PrevResult lacks a single named interface",
    ),
    "vlan master": (
        lambda: vlan.check_config(parsed("vlan", ipam=HOST_LOCAL)),
        '"master" field is required. It specifies the host interface name to create the VLAN for',
    ),
    "vlan id": (
        lambda: vlan.check_config(parsed("vlan", master="up0", vlanId=4095, ipam=HOST_LOCAL)),
        "invalid VLAN ID 4095 (must be between 0 and 4095 inclusive)",
    ),
    "vlan ipam": (
        lambda: vlan.check_config(parsed("vlan", master="up0")),
        "failed to execute IPAM delegate: no plugin name provided",
    ),
    "dummy ipam": (lambda: dummy.require_ipam(parsed("dummy")), "dummy interface requires an IPAM configuration"),
    "host-device": (
        lambda: host_device.check_config(parsed("host-device")),
        'specify either "device", "hwaddr", "kernelpath" or "pciBusID"',
    ),
    "host-device id": (
        lambda: host_device.check_config(parsed("host-device", runtimeConfig={"deviceID": "../x"})),
        "runtime config DeviceID ../x not found or unsupported",
    ),
    "host-device path": (
        lambda: sysfs.link_of_path("/sys/devices/../class"),
        'failed to find host device: kernel device path "/sys/devices/../class" must be absolute and begin with /sys/devices/',
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_sentence_of_the_go_plugin(case: str) -> None:
    refuse, sentence = REFUSED[case]
    with pytest.raises(CniError) as refused:
        refuse()
    assert refused.value.msg.startswith(sentence)


# --- ptp --------------------------------------------------------------------------------------------------------------


def pairs(*texts: tuple[str, str]) -> ptp.Ends:  # type: ignore[name-defined]  # a name for the type checker alone
    return [(ip_interface(address), ip_address(gateway)) for address, gateway in texts]


def test_routes_of_two_addresses_by_one_gateway() -> None:
    ends = pairs(("10.1.0.5/24", "10.1.0.1"), ("10.1.0.6/24", "10.1.0.1"), ("fd00::5/64", "fd00::1"))
    assert [" ".join(route.words()) for route in ptp.sandbox_routes(ends)] == [
        "10.1.0.1/32 src 10.1.0.5",
        "fd00::1/128 src fd00::5",
        "10.1.0.0/24 via 10.1.0.1 src 10.1.0.5",
        "fd00::/64 via fd00::1 src fd00::5",
    ]
    assert [" ".join(route.words()) for route in ptp.pod_routes(ends)] == [
        "10.1.0.5/32 scope 254",
        "10.1.0.6/32 scope 254",
        "fd00::5/128 scope 254",
    ]
    assert list(map(str, ptp.gateway_addresses(ends))) == ["10.1.0.1/32", "fd00::1/128"]


def test_address_without_gateway_is_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"10\.1\.0\.5/24 has no gateway"):
        ptp.with_gateways([IPConfig(ip_interface("10.1.0.5/24"))])


# --- static -----------------------------------------------------------------------------------------------------------

CONFIGURED = {"type": "static", "addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}]}


@pytest.mark.parametrize(
    ("keys", "args", "expected"),
    [
        ({}, (), ["10.1.0.5/24 10.1.0.1"]),
        ({}, (("IP", "10.1.0.7/24"),), ["10.1.0.5/24 10.1.0.1", "10.1.0.7/24 None"]),
        (
            {},
            (("IP", "10.2.0.7/24, fd00::7/64"), ("GATEWAY", "10.2.0.1,fd00::1,10.1.0.9")),
            ["10.1.0.5/24 10.1.0.1", "10.2.0.7/24 10.2.0.1", "fd00::7/64 fd00::1"],
        ),
        ({"args": {"cni": {"ips": ["10.3.0.7/24"]}}}, (("IP", "10.2.0.7/24"),), ["10.3.0.7/24 None"]),
        ({"args": {"cni": {"ips": ["10.3.0.7/24"]}}, "runtimeConfig": {"ips": ["10.4.0.7/24"]}}, (), ["10.4.0.7/24 None"]),
    ],
)
def test_addresses_of_static(keys: dict[str, Any], args: tuple[tuple[str, str], ...], expected: list[str]) -> None:
    found = static.addresses(call("static", *args), parsed("static", ipam=CONFIGURED, **keys))
    assert [f"{ip.address} {ip.gateway}" for ip in found] == expected


# --- sysfs ------------------------------------------------------------------------------------------------------------


def test_devices_of_a_bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysfs, "PCI", str(tmp_path / "pci"))
    monkeypatch.setattr(sysfs, "AUXILIARY", str(tmp_path / "auxiliary"))
    for path in (
        "pci/0000:01:00.0/net/nic0",
        "pci/0000:02:00.0/virtio3/net/nic1",
        "pci/0000:03:00.0",
        "auxiliary/x.sf.1/net/nic2",
    ):
        (tmp_path / path).mkdir(parents=True)
    for driver, device in (("virtio-pci", "0000:02:00.0"), ("vfio-pci", "0000:03:00.0")):
        (tmp_path / driver).mkdir()
        (tmp_path / "pci" / device / "driver").symlink_to(tmp_path / driver)
    assert (sysfs.link_of_pci("0000:01:00.0"), sysfs.link_of_pci("0000:02:00.0")) == ("nic0", "nic1")
    assert sysfs.link_of_auxiliary("x.sf.1") == "nic2"
    assert [sysfs.has_user_space_driver(f"0000:0{number}:00.0") for number in (2, 3)] == [False, True]
    for refuse in (sysfs.link_of_pci, sysfs.has_user_space_driver, sysfs.link_of_auxiliary):
        for device in ("0000:09:00.0", "../pci", "", ".", "a\0b"):
            with pytest.raises(InvalidConfig):
                refuse(device)
    assert not sysfs.is_device(sysfs.PCI, "..")


# --- records ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(record, "DIRECTORY", str(tmp_path))
    return tmp_path


def of(network: str, netns: str = "/proc/self/ns/net", **keys: Any) -> Call:
    return Call("DEL", "macvlan", "c1", netns, "eth0", conf={"name": network} | keys)


def test_interface_is_that_of_the_older_record(records: Path) -> None:
    """A network that was refused the name has no record, or a younger one if its ADD was killed."""
    assert not record.is_anothers_interface(of("first"))
    record.remember(of("first"))
    assert record.is_anothers_interface(of("second"))
    record.remember(of("second"))
    import os

    os.utime(records / "c1:eth0:first", (1, 1))
    assert record.is_anothers_interface(of("second"))
    assert not record.is_anothers_interface(of("first"))
    assert not record.is_anothers_interface(of("second", netns="/run/netns/other"))


def test_del_without_a_sandbox_finds_the_recorded_one(records: Path) -> None:
    assert record.with_sandbox(of("net", netns="")).netns == ""
    record.remember(of("net"))
    assert record.with_sandbox(of("net", netns="")).netns == "/proc/self/ns/net"
    assert record.with_sandbox(of("net", netns="/x")).netns == "/x"


def test_models_of_main_plugins_share_their_keys() -> None:
    """IPAM, DNS and how to run the IPAM plugin, once."""
    shared = set(models.MainConfig.model_fields)
    for plugin, row in PLUGINS.items():
        if row.kind == "main" and plugin != "loopback":
            assert shared <= set(models.PLUGIN_MODELS[plugin].model_fields), plugin
