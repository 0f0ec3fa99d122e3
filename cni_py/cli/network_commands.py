"""Commands on flannel's datastore: ``cni-py config get``, ``set``, ``leases``, ``reserve``, ``release``.

The datastore is selected as for flanneld, by its options and variables. A configuration is validated as
flanneld does it, and compared with the existing leases, before it is written.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from threading import Timer
from typing import TYPE_CHECKING, Any

from cni_py.cli.output import say
from cni_py.datastore.errors import Refused, StoreError, Unavailable
from cni_py.errors import CniError, InvalidConfig, NotAvailable
from cni_py.flanneld import allocate, backends
from cni_py.flanneld.host_networks import warnings_here
from cni_py.flanneld.lease import Subnets, why_no_node
from cni_py.flanneld.network import NetworkConfig, read_text
from cni_py.flanneld.options import Options, UsageError, parse
from cni_py.flanneld.stores import read_snapshot
from cni_py.flanneld.stores.etcd import EtcdStore
from cni_py.flanneld.stores.file import FileStore
from cni_py.node.stop import Stop

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from cni_py.flanneld.lease import Lease

Datastore = EtcdStore | FileStore
Output = tuple[list[str], list[str]]
"""Lines for standard output, and messages for standard error."""
REPLY_SECONDS = 10.0
SHOWN = 5


def run(options: argparse.Namespace) -> Output:
    """Run the command. Raises: UsageError, CniError."""
    with opened(options.flanneld_options) as store:
        if options.config_command == "get":
            return get(store)
        if options.config_command == "leases":
            return ([json.dumps(listed(store), indent=4)], []) if options.json else leases(store)
        if options.config_command == "set":
            return write(store, read_source(options.source), is_forced=options.force)
        if options.config_command == "reserve":
            return reserve(store, parse_subnets(options.subnet), parse_address(options.public_ip))
        return release(store, parse_subnets(options.subnet))


@contextmanager
def opened(words: Sequence[str]) -> Iterator[Datastore]:
    """Open the datastore that flanneld with these options would use. Raises: UsageError, CniError."""
    options = parse(words, os.environ)
    for text in options.warnings:
        say(f"warning: {text}")
    if options.check_config or options.cleanup or options.version:
        raise UsageError('only flanneld options that select the datastore may follow "--"')
    if options.kube_subnet_mgr:
        raise NotAvailable(
            "with -kube-subnet-mgr the network configuration is not in a datastore: "
            f"it is the file {options.net_config_path}, from a ConfigMap",
            hint="change it with: kubectl -n kube-flannel edit configmap kube-flannel-cfg",
        )
    try:
        if options.datastore:
            store: Datastore = FileStore(options.datastore.removeprefix("file:"), os.uname().nodename)
        else:
            store = EtcdStore.from_options(options, None)
        try:
            yield store
        finally:
            store.close()
    except StoreError as error:
        raise CniError(error.msg, why_this_etcd(options, error), error.hint) from error


def why_this_etcd(options: Options, error: StoreError) -> str:
    """Return how to name another etcd, if none was named and that of this machine does not reply; else ""."""
    is_default = not options.datastore and options.etcd_endpoints == Options().etcd_endpoints
    if not is_default or not isinstance(error, Unavailable):
        return ""
    return (
        'no etcd was named, so it was searched for on this machine; name it at the end: "-- -etcd-endpoints=http://HOST:2379"'
    )


def get(store: Datastore) -> Output:
    """Return the stored text. Raises: StoreError; InvalidConfig if no flanneld could use it."""
    text = store.read_network_config()
    try:
        return [text], remarks(validated(text))
    except InvalidConfig as error:
        error.details = f"{error.details}\nfound: {text}".lstrip()
        raise


def write(store: Datastore, text: str, *, is_forced: bool = False) -> Output:
    """Validate and write a configuration. Raises: StoreError; InvalidConfig if it is invalid or conflicts with leases."""
    text = text.strip()
    config = validated(text)
    leases = leases_of(store)
    mistyped = mistyped_keys(text, config)
    if mistyped and not is_forced:
        raise InvalidConfig("configuration was not written: a key is probably mistyped", "\n".join(mistyped), "correct the key")
    if not is_forced and (reasons := conflicts(config, leases)):
        raise InvalidConfig(
            "configuration is valid but was not written: it conflicts with the leases of nodes",
            "\n".join(reasons),
            "keep Network and Backend.Type as they are; --force is for a planned outage, in which flanneld is restarted "
            "on every node, and the pods of nodes whose subnet changes are created again",
        )
    store.write_network_config(text)
    messages = [*remarks(config), *warnings_here(config.networks), f"written: {config}"]
    if leases:
        messages.append(f"flanneld reads it when it starts; nodes with a lease: {names_of(leases)}")
    return [], messages


def reserve(store: Datastore, subnets: Subnets, public_ip: IPv4Address | IPv6Address) -> Output:
    """Reserve a subnet permanently. Raises: StoreError; InvalidConfig if it is not a node's subnet of the network."""
    config = validated(store.read_network_config())
    if not allocate.compatible(subnets, config):
        raise InvalidConfig(f"subnet {subnets} does not fit the network", f"the network is {config}")
    if config.ipv4 and public_ip.version != 4:
        raise InvalidConfig(f"invalid address {public_ip}: nodes of this network are identified by their IPv4 address")
    store.reserve(subnets, public_ip)
    messages = [f"{subnets} is reserved for {public_ip}; flanneld uses it when it starts there"]
    if any(public_ip in subnet for subnet in subnets.each()):
        messages.append(
            f"warning: {subnets} contains {public_ip}, the node's own address; flanneld refuses that on the node's LAN"
        )
    return [], messages


def release(store: Datastore, subnets: Subnets) -> Output:
    """Turn a reservation into a lease. Raises: StoreError."""
    store.release(subnets)
    return [], [f"{subnets} is a lease now; it expires in 24 hours unless its node renews it"]


def validated(text: str) -> NetworkConfig:
    """Validate a configuration as flanneld does. Raises: InvalidConfig, with every invalid key."""
    config = NetworkConfig.parse(text)
    backends.check(config)
    return config


def mistyped_keys(text: str, config: NetworkConfig) -> list[str]:
    """Return the warnings about keys that are probably mistyped, and whose right form is not there beside them."""
    raw = json.loads(text)
    keys = [*raw, *(key for value in raw.values() if isinstance(value, dict) for key in value)]
    there = {f'is "{key}" meant?'.lower() for key in keys}
    return [line for line in remarks(config) if line.endswith(" meant?") and line.rpartition(": ")[2].lower() not in there]


def remarks(config: NetworkConfig) -> list[str]:
    """Return what is accepted, and probably not what was meant."""
    return backends.remarks(config)


def listed(store: Datastore) -> list[dict[str, Any]]:
    """Return every lease and reservation, for people and programs. Raises: StoreError."""
    found = sorted(
        store.listed(), key=lambda lease: [(each.version, int(each.network_address)) for each in lease.subnets.each()]
    )
    return [
        {
            "subnet": str(lease.subnets),
            "publicIP": ",".join(map(str, lease.attributes.addresses)),
            "backend": lease.attributes.backend_type,
            "expires": None
            if lease.expires is None
            else datetime.fromtimestamp(lease.expires, UTC).strftime("%Y-%m-%d %H:%M:%SZ"),
            "isReservation": lease.expires is None,
        }
        for lease in found
    ]


def leases(store: Datastore) -> Output:
    """Return a table of the leases. Raises: StoreError."""
    rows = [("SUBNET", "NODE", "BACK END", "EXPIRES")]
    rows += [
        (of["subnet"], of["publicIP"] or "-", of["backend"] or "-", of["expires"] or "never: reserved") for of in listed(store)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return (lines, []) if len(rows) > 1 else ([], ["no leases"])


def conflicts(config: NetworkConfig, leases: Sequence[Lease]) -> list[str]:
    """Return the reasons why nodes with leases would lose their subnet or their connectivity."""
    reasons = []
    misfits = [lease for lease in leases if not allocate.compatible(lease.subnets, config)]
    if misfits:
        reasons.append(f"leases that do not fit {config}, {len(misfits)} of {len(leases)}: {names_of(misfits)}")
    published = "" if config.backend_type in ("udp", "alloc") else config.backend_type
    others = [lease for lease in leases if lease.attributes.backend_type.lower() not in ("", published)]
    if others:
        reasons.append(f"Backend.Type is {config.backend_type}, but {names_of(others, show_type=True)}")
    return reasons


def names_of(leases: Sequence[Lease], *, show_type: bool = False) -> str:
    shown = []
    for lease in leases[:SHOWN]:
        attributes = lease.attributes
        kind = f" has {attributes.backend_type}" if show_type else ""
        shown.append(f"{attributes.public_ip or attributes.public_ipv6} ({lease.subnets}){kind}")
    return ", ".join([*shown, *([f"{len(leases) - SHOWN} more"] if len(leases) > SHOWN else [])])


def leases_of(store: Datastore) -> list[Lease]:
    """Return all leases; empty if there is no network configuration yet. Raises: StoreError."""
    try:
        store.read_network_config()  # fails immediately if the datastore is unavailable; watch() would retry
    except Refused:
        return []
    stop = Stop()
    timer = Timer(REPLY_SECONDS, stop.set)
    timer.start()
    try:
        leases = read_snapshot(store.watch(stop))
    finally:
        timer.cancel()
        stop.set()
    if leases is not None:
        return list(leases.values())
    raise Unavailable("could not read the leases: no reply from the datastore")


def read_source(source: str) -> str:
    """Read a file or standard input. Raises: CniError, OSError."""
    try:
        return read_text(source)
    except ValueError as error:
        raise InvalidConfig(f"{source} is not text", str(error)) from error


def parse_subnets(text: str) -> Subnets:
    """Parse ``10.244.91.0/24``, or one per family separated by a comma. Raises: InvalidConfig."""
    found: dict[type, IPv4Network | IPv6Network] = {}
    try:
        for part in text.split(","):
            network = ip_network(part.strip())
            found[type(network)] = network
    except ValueError as error:
        raise InvalidConfig(f'invalid subnet "{text}"', str(error), "for example 10.244.91.0/24") from error
    ipv4, ipv6 = found.get(IPv4Network), found.get(IPv6Network)
    assert not isinstance(ipv4, IPv6Network)
    assert not isinstance(ipv6, IPv4Network)
    return Subnets(ipv4, ipv6)


def parse_address(text: str) -> IPv4Address | IPv6Address:
    """Parse the public address of a node. Raises: InvalidConfig."""
    try:
        address = ip_address(text)
    except ValueError as error:
        raise InvalidConfig(f'invalid IP address of a node: "{text}"') from error
    if why_not := why_no_node(address):
        raise InvalidConfig(f'invalid IP address of a node: "{text}"', f"it is {why_not}", "see PublicIP in the node's lease")
    return address
