"""Any JSON value in any field of another node's lease, for every back end and datastore: the peers that are right are reached.

From the text in the datastore to the kernel's entries and to what is saved, without threads: what would end one is an exception
here. Beside the odd lease there is a good one before it and one after it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cni_py.datastore.etcd import Etcd, KeyValue
from cni_py.flanneld import backends, saved
from cni_py.flanneld.backends import extension, vxlan
from cni_py.flanneld.following import Following
from cni_py.flanneld.iface import ExternalInterface
from cni_py.flanneld.lease import Attributes, Lease, NotALease, Subnets
from cni_py.flanneld.network import NetworkConfig
from cni_py.flanneld.saved import Saver
from cni_py.flanneld.stores import SNAPSHOT_COMPLETE
from cni_py.flanneld.stores.etcd_leases import Leases
from cni_py.flanneld.stores.kubernetes_annotations import Annotations
from cni_py.flanneld.stores.lease_file import Damaged, LeaseFile
from cni_py.node.desired import Desired
from cni_py.node.health import Health
from cni_py.node.stop import Stop
from support.stub_kernel import StubWireGuardDevice

NETWORK = {"Network": "10.244.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:244::/48"}
HERE, HERE6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
EXTERNAL = ExternalInterface("eth0", 2, 1500, HERE, HERE6, HERE, HERE6)
KEY = "RVh1ZFpqaDhBZkd6d1hLVUw4ckpQZ0tFYmJzQkp3cWk="
DATA: dict[str, Any] = {
    "vxlan": {"VNI": 1, "VtepMAC": "02:00:00:00:00:02"},
    "wireguard": {"PublicKey": KEY, "Port": 51820},
    "extension": "text",
}
FIELDS = ("PublicIP", "PublicIPv6", "BackendType", "BackendData", "BackendV6Data")
DEEP = [100, 985, 3000]


def values() -> st.SearchStrategy[str]:
    """Any JSON, as text, with half surrogate pairs, numbers beyond a float, and nesting that a recursion does not survive."""
    texts = st.text(st.characters(exclude_categories=()), max_size=20).map(json.dumps)
    leaves = st.one_of(
        st.sampled_from(
            ["null", "true", "false", "NaN", "1e999", "1" * 400, '"\\ud800"', '""', "{}", "[]", '"0.0.0.0"', '"::"']
        ),
        texts,
        st.integers().map(str),
        st.floats(allow_nan=False, allow_infinity=False).map(json.dumps),
    )
    nested = st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3).map(lambda parts: f"[{','.join(parts)}]"),
            st.lists(
                st.tuples(st.sampled_from(['"VtepMAC"', '"vtepmac"', '"PublicKey"', '"Port"', '"x"']), inner), max_size=3
            ).map(lambda pairs: "{" + ",".join(f"{key}:{value}" for key, value in pairs) + "}"),
        ),
        max_leaves=6,
    )
    deep = st.tuples(st.sampled_from(DEEP), st.sampled_from(["[]", "{}"])).map(lambda it: deep_text(*it))
    return st.one_of(nested, deep)


def deep_text(depth: int, brackets: str) -> str:
    begin = "[" if brackets == "[]" else '{"VtepMAC":'
    return begin * depth + "1" + brackets[1] * depth


def odd_leases() -> st.SearchStrategy[dict[str, str]]:
    """Fields in any case, with unknown ones; the field "" is the value itself."""
    names = st.sampled_from([*FIELDS, *FIELDS, "publicip", "BACKENDDATA", "x", "Expires", "Node", ""])
    return st.dictionaries(names, values(), min_size=1, max_size=3)


def odd_keys() -> st.SearchStrategy[str]:
    """Mostly the third subnet; else a name that is none, or a subnet that no node may have."""
    texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    odd = ["0.0.0.0-0", "0.0.0.0-0&::-0", "10.244.3.0-33", "10.244.3.0-" + "9" * 5000, "1" * 5000 + ".1.1.1-1"]
    odd += [
        "\u0661.2.3.4-24",
        "10.244.3.0-\u0662\u0664",
        "../config",
        "\x1b[2J",
        "127.0.0.0-8",
        "255.255.255.255-32",
        "224.0.0.0-4",
    ]
    odd += ["192.0.2.0-24&2001:db8::-64", "10.244.1.0-24"]
    return st.one_of(st.just(key(3)), st.just(key(3)), st.sampled_from(odd), texts)


def good_value(kind: str, number: int) -> dict[str, str]:
    """The fields of a lease, each as JSON text."""
    data = DATA.get(kind)
    if kind == "vxlan":
        data = {**data, "VtepMAC": f"02:00:00:00:00:{number:02x}"}
    elif kind == "wireguard":
        data = {**data, "PublicKey": f"{KEY[:8]}{number}{KEY[9:]}"}
    fields = {"PublicIP": f"192.0.2.{number}", "PublicIPv6": f"2001:db8::{number}", "BackendType": kind}
    fields |= {"BackendData": data, "BackendV6Data": data} if data else {}
    return {name: json.dumps(value) for name, value in fields.items()}


def key(number: int) -> str:
    return f"10.244.{number}.0-24&fd00:244:0:{number}::-64"


def as_object(fields: dict[str, str]) -> str:
    if "" in fields:
        return fields[""]
    return "{" + ",".join(f"{json.dumps(name)}:{text}" for name, text in fields.items()) + "}"


def from_etcd(entries: dict[str, dict[str, str]]) -> list[Lease]:
    leases = Leases(Etcd(["127.0.0.1:1"]), "/subnets/")
    found = [
        leases.lease_of(KeyValue(f"/subnets/{name}", as_object(fields).encode(), 7, number, number))
        for number, (name, fields) in enumerate(entries.items(), 1)
    ]
    return [each for each in found if each is not None]


def from_file(entries: dict[str, dict[str, str]]) -> list[Lease]:
    text = f'{{"config":{{}},"leases":{as_object({name: as_object(fields) for name, fields in entries.items()})}}}'
    try:
        content = LeaseFile(text.encode())
    except Damaged:  # one text: the last good leases stay
        return []
    again = LeaseFile(content.as_text())
    assert again.leases() == content.leases(), "another node's change keeps them"
    return list(content.leases().values())


def from_kubernetes(entries: dict[str, dict[str, str]]) -> list[Lease]:
    names = {"BackendType": "backend-type", "PublicIP": "public-ip", "PublicIPv6": "public-ipv6"}
    annotations, found = Annotations("flannel.alpha.coreos.com"), []
    for number, (name, fields) in enumerate(entries.items(), 1):
        its = {"kube-subnet-manager": "true"}
        for field, text in fields.items():
            its[names.get(field, "backend-v6-data" if field == "BackendV6Data" else "backend-data")] = (
                str(_loaded(text)) if field in names else text
            )
        subnets = [each.replace("-", "/") for each in name.split("&")]
        metadata = {"name": f"n{number}", "annotations": {f"flannel.alpha.coreos.com/{k}": v for k, v in its.items()}}
        try:
            lease = annotations.lease({"metadata": metadata, "spec": {"podCIDRs": subnets}}, True, True)
        except NotALease:
            continue
        if lease is not None:
            found.append(lease)
    return found


def _loaded(text: str) -> Any:
    """Return the text as the API's JSON has an annotation: text, whatever it says."""
    try:
        return json.loads(text) if len(text) < 1000 else text
    except ValueError:
        return text


DATASTORES: dict[str, Callable[[dict[str, dict[str, str]]], list[Lease]]] = {
    "etcd": from_etcd,
    "file": from_file,
    "kubernetes": from_kubernetes,
}


class Kernel:
    """A reconciler without a kernel."""

    def __init__(self) -> None:
        self.desired = Desired()

    def replace(self, owner: Any, former: Any, group: Any) -> Any:
        return self.desired.replace(owner, former, group)

    def settle(self) -> None:
        self.desired.take_changes()


class Node:
    """The part of a flanneld that follows leases, with one back end."""

    def __init__(self, kind: str, directory: str) -> None:
        self.kind, self.kernel, self.leases = kind, Kernel(), dict[Subnets, Lease]()
        network = {"Network": NETWORK["Network"]} if kind == "ipip" else NETWORK
        keys = {"SubnetAddCommand": "add $PUBLIC_IP"} if kind == "extension" else {}
        self.config = NetworkConfig.parse(json.dumps({**network, "Backend": {"Type": kind, **keys}}))
        self.backend: Any = backends.create(self.config, EXTERNAL)
        if kind == "vxlan":
            self.backend._vxlans = {
                version: self.backend._device(version, vxlan.device_name(1, version), "") for version in (4, 6)
            }
        if kind == "wireguard":
            self.backend._devices = {name: StubWireGuardDevice() for name in self.backend.names.values()}
        self.own = Lease(Subnets.from_key(key(1)), Attributes(HERE, HERE6, kind))
        kernel: Any = self.kernel
        self.saver = Saver(
            f"{directory}/{kind}.json", json.dumps(network | {"Backend": {"Type": kind}}), lambda: self.own, self.leases
        )
        self.following = Following(
            self.config, lambda: self.own, self.backend, kernel, Health("", 0), self.leases, self.saver.changed, lambda _: ""
        )

    def follow(self, leases: list[Lease]) -> None:
        self.following.start({each.subnets: each for each in leases[:1]}, is_confirmed=False)
        self.following.take([*leases, SNAPSHOT_COMPLETE], 100.0)
        assert self.saver.save(), "it is saved"
        again = saved.read(self.saver.path)
        assert again is not None
        assert again.leases() == {**self.leases, self.own.subnets: self.own}
        if self.kind == "extension":
            self.backend.settle(Stop())

    def reached(self) -> set[str]:
        """The subnets that have entries, by whatever the back end keeps."""
        if self.kind == "wireguard":
            return {
                str(net) for device in self.backend._devices.values() for peer in device.peers.values() for net in peer.allowed
            }
        if self.kind == "udp":
            return {str(subnet) for each in self.leases.values() for subnet in self.backend._nodes(each)}
        if self.kind == "extension":
            return {str(subnet) for subnets in self.backend._known for subnet in subnets.each()}
        return {
            str(entry.dst)
            for table in self.kernel.desired._entries.values()
            for entry in table.values()
            if hasattr(entry, "dst")
        }


KINDS = [kind for kind in backends.MODULES if kind != "alloc"]


@pytest.fixture(autouse=True)
def commands(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Instead of running one: what it would be given."""
    given_to = list[bytes]()
    monkeypatch.setattr(extension, "run_command", lambda _command, _variables, stdin="": given_to.append(f"{stdin}\n".encode()))
    return given_to


def one_odd_lease(kind: str, datastore: str, name: str, odd: dict[str, str]) -> None:
    """Follow three leases, of which the second has an odd key or odd fields; the other two are reached."""
    entries = {key(2): good_value(kind, 2), name: {**good_value(kind, 3), **odd}, key(4): good_value(kind, 4)}
    with tempfile.TemporaryDirectory() as directory:
        node = Node(kind, directory)
        leases = DATASTORES[datastore](entries)
        if datastore == "file" and not leases:
            return
        node.follow(leases)
        version = 4 if kind == "ipip" else None
        good = [str(net) for number in (2, 4) for net in Subnets.from_key(key(number)).each() if version in (None, net.version)]
        assert node.reached() >= set(good)
        assert not list(Path(directory).glob("*.tmp"))


@pytest.mark.parametrize("datastore", DATASTORES)
@pytest.mark.parametrize("kind", KINDS)
def test_odd_lease_costs_no_other_one(kind: str, datastore: str, longer: int) -> None:
    @given(name=odd_keys(), odd=odd_leases())
    @example(name=key(3), odd={"BackendData": deep_text(985, "[]")})
    @example(name=key(3), odd={"BackendData": deep_text(985, "{}"), "BackendV6Data": '"\\ud800"'})
    @example(name=key(3), odd={"BackendData": '"\\ud800"'})
    @example(name=key(3), odd={"BackendType": '"\\ud800"'})
    @example(name=key(3), odd={"PublicIP": deep_text(985, "[]")})
    @example(name=key(3), odd={"PublicIP": '"192.0.2.2"'})
    @example(name=key(3), odd={"BackendData": '{"VtepMAC":"02:00:00:00:00:02"}'})
    @settings(deadline=None, max_examples=25 * longer, suppress_health_check=list(HealthCheck))
    def run(name: str, odd: dict[str, str]) -> None:
        one_odd_lease(kind, datastore, name, odd)

    run()
