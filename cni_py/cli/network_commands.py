"""``cni-py config get``, ``set``, ``reserve``, ``release``: what people write into flannel's datastore.

The datastore is named as for flanneld, by its options and variables. A configuration is validated as
flanneld does it, and held against the leases that are there, before it is written.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from threading import Timer
from typing import TYPE_CHECKING

from cni_py.datastore.errors import Refused, StoreError, Unavailable
from cni_py.errors import CniError, InvalidConfig, NotAvailable
from cni_py.flanneld import allocate, backends
from cni_py.flanneld.lease import Subnets, why_no_node
from cni_py.flanneld.network import NetworkConfig, read_text
from cni_py.flanneld.options import UsageError, parse
from cni_py.flanneld.stores import read_snapshot
from cni_py.flanneld.stores.etcd import EtcdStore
from cni_py.flanneld.stores.file import FileStore
from cni_py.node.stop import Stop

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from cni_py.flanneld.lease import Lease

Datastore = EtcdStore | FileStore
Answer = tuple[list[str], list[str]]
"""Lines for standard output, and remarks."""
ANSWER_SECONDS = 10.0
SHOWN = 5


def run(options: argparse.Namespace) -> Answer:
    """Raises: UsageError, CniError."""
    with opened(options.flanneld_options) as store:
        if options.command == "config get":
            return get(store)
        if options.command == "config set":
            return write(store, read_source(options.source), is_forced=options.force)
        if options.command == "config reserve":
            return reserve(store, parse_subnets(options.subnet), parse_address(options.public_ip))
        return release(store, parse_subnets(options.subnet))


@contextmanager
def opened(words: Sequence[str]) -> Iterator[Datastore]:
    """The datastore that flanneld with these options would use. Raises: UsageError, CniError."""
    options = parse(words, os.environ)
    if options.check_config or options.cleanup or options.version:
        raise UsageError('after "--" stand the options of flanneld that name the datastore')
    if options.kube_subnet_mgr:
        raise NotAvailable(
            f"in Kubernetes the network configuration is not in a datastore: it is {options.net_config_path}, from a ConfigMap",
            hint="kubectl -n kube-flannel edit configmap kube-flannel-cfg; flanneld -check-config FILE",
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
        raise CniError(error.msg, hint=error.hint) from error


def get(store: Datastore) -> Answer:
    """The text as it is there. Raises: StoreError; InvalidConfig where no flanneld could use it."""
    text = store.read_network_config()
    try:
        return [text], backends.remarks(check(text))
    except InvalidConfig as error:
        error.details = f"{error.details}\nit is: {text}".lstrip()
        raise


def write(store: Datastore, text: str, *, is_forced: bool = False) -> Answer:
    """Raises: StoreError; InvalidConfig where it is wrong, or does not suit the leases."""
    text = text.strip()
    config = check(text)
    leases = leases_of(store)
    if not is_forced and (reasons := unsuited(config, leases)):
        raise InvalidConfig(
            "the configuration is right, and was not written, because of the nodes that there are",
            "\n".join(reasons),
            'with --force it is written; then flanneld has to be restarted on every node ("systemctl restart flanneld"), '
            "and pods whose node gets another subnet have to be made anew",
        )
    store.write_network_config(text)
    remarks = [*backends.remarks(config), f"written: {config}"]
    if leases:
        remarks.append(f"flanneld reads it when it starts; {len(leases)} have a lease: {names_of(leases)}")
    return [], remarks


def reserve(store: Datastore, subnets: Subnets, public_ip: IPv4Address | IPv6Address) -> Answer:
    """Raises: StoreError; InvalidConfig where it is no subnet of the network."""
    config = check(store.read_network_config())
    if not allocate.compatible(subnets, config):
        raise InvalidConfig(f"{subnets} is no subnet that a node can have", f"the network is {config}")
    if config.ipv4 and public_ip.version != 4:
        raise InvalidConfig(f"{public_ip}: nodes of this network are known by their IPv4 address")
    store.reserve(subnets, public_ip)
    return [], [f"{subnets} is reserved for {public_ip}, which takes it when flanneld starts there"]


def release(store: Datastore, subnets: Subnets) -> Answer:
    """Raises: StoreError."""
    store.release(subnets)
    return [], [f"{subnets} is a lease now, which ends in 24 hours unless its node renews it"]


def check(text: str) -> NetworkConfig:
    """As flanneld will. Raises: InvalidConfig, with every key that is wrong."""
    config = NetworkConfig.parse(text)
    backends.check(config)
    return config


def unsuited(config: NetworkConfig, leases: Sequence[Lease]) -> list[str]:
    """Why the nodes that have leases would lose their subnet, or one another."""
    reasons = []
    misfits = [lease for lease in leases if not allocate.compatible(lease.subnets, config)]
    if misfits:
        reasons.append(f"{len(misfits)} of {len(leases)} leases do not fit {config}: {names_of(misfits)}")
    published = "" if config.backend_type in ("udp", "alloc") else config.backend_type
    others = [lease for lease in leases if lease.attributes.backend_type.lower() not in ("", published)]
    if others:
        reasons.append(f"Backend.Type is {config.backend_type}, and {names_of(others, show_type=True)}")
    return reasons


def names_of(leases: Sequence[Lease], *, show_type: bool = False) -> str:
    shown = []
    for lease in leases[:SHOWN]:
        attributes = lease.attributes
        kind = f" has {attributes.backend_type}" if show_type else ""
        shown.append(f"{attributes.public_ip or attributes.public_ipv6} ({lease.subnets}){kind}")
    return ", ".join([*shown, *([f"{len(leases) - SHOWN} more"] if len(leases) > SHOWN else [])])


def leases_of(store: Datastore) -> list[Lease]:
    """All that there are; none where there is no network yet. Raises: StoreError."""
    try:
        store.read_network_config()  # this says at once what is wrong; watching would wait for better times
    except Refused:
        return []
    stop = Stop()
    timer = Timer(ANSWER_SECONDS, stop.set)
    timer.start()
    try:
        leases = read_snapshot(store.watch(stop))
    finally:
        timer.cancel()
        stop.set()
    if leases is not None:
        return list(leases.values())
    raise Unavailable("the datastore does not say which leases there are")


def read_source(source: str) -> str:
    """Raises: CniError, OSError."""
    try:
        return read_text(source)
    except ValueError as error:
        raise InvalidConfig(f"{source} is no text", str(error)) from error


def parse_subnets(text: str) -> Subnets:
    """``10.244.91.0/24``, or one of each family with a comma between. Raises: InvalidConfig."""
    found: dict[type, IPv4Network | IPv6Network] = {}
    try:
        for part in text.split(","):
            network = ip_network(part.strip())
            found[type(network)] = network
    except ValueError as error:
        raise InvalidConfig(f'"{text}" is no subnet', str(error), "for example 10.244.91.0/24") from error
    ipv4, ipv6 = found.get(IPv4Network), found.get(IPv6Network)
    assert not isinstance(ipv4, IPv6Network)
    assert not isinstance(ipv6, IPv4Network)
    return Subnets(ipv4, ipv6)


def parse_address(text: str) -> IPv4Address | IPv6Address:
    """Raises: InvalidConfig."""
    try:
        address = ip_address(text)
    except ValueError as error:
        raise InvalidConfig(f'"{text}" is no IP address of a node') from error
    if why_not := why_no_node(address):
        raise InvalidConfig(f'"{text}" is no IP address of a node', f"it is {why_not}", "see PublicIP in the node's lease")
    return address
