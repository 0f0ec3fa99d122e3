"""Modes of flanneld that end by themselves: ``--cleanup``, ``--check-config``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from cni_py import files
from cni_py.errors import CniError, NotAvailable
from cni_py.flanneld import backends, host_networks, iface, saved
from cni_py.flanneld.firewall import Firewall
from cni_py.flanneld.network import NetworkConfig, read_text
from cni_py.flanneld.only_one import only_one
from cni_py.flanneld.subnet_file import journal_path
from cni_py.journal import printable
from cni_py.kernel.link import delete_link, list_links
from cni_py.kernel.route import delete_routes, list_routes
from cni_py.netlink.socket import open_host
from cni_py.node.log import error, info
from cni_py.undo import Attempts

if TYPE_CHECKING:
    from cni_py.flanneld.options import Options


def cleanup(options: Options) -> int:
    """``flanneld --cleanup``: remove the data path, the rules, subnet.env and what was saved. Returns the exit status.

    Refused while a flanneld runs, which would restore it all.
    """
    try:
        with only_one(options.subnet_file, removes=True):
            return _cleanup(options)
    except NotAvailable as fault:
        error(f"nothing was removed: {fault}")
        return 1


def _cleanup(options: Options) -> int:
    saved_path = saved.path_for(options.subnet_file)
    known, attempts = saved.read(saved_path), Attempts()
    if known is not None:
        with attempts.attempt("what the back end made"):
            config = NetworkConfig.parse(known.config)
            backends.create(config, iface.find(options, config.ipv4, config.ipv6)).cleanup()
    with attempts.attempt("rules"):
        Firewall.cleanup()
    with attempts.attempt("routes and devices"):
        _remove_routes_and_devices()
    for path in (options.subnet_file, saved_path, journal_path(options.subnet_file)):
        with attempts.attempt(path):
            files.remove(path)
    try:
        attempts.raise_if_failed("flanneld --cleanup")
    except CniError as fault:
        error(f"not all could be removed: {fault}")
        return 1
    info("removed what flanneld had made")
    return 0


def _remove_routes_and_devices() -> None:
    """Remove those that a flanneld of any configuration made. Raises: CniError."""
    with open_host() as host:
        refused = [refusal.error for refusal in delete_routes(host, list_routes(host))]
        for link in list_links(host):
            if backends.is_device(link):
                delete_link(host, link.name)
    if refused:
        raise refused[0]


def check_config(source: str) -> int:
    """``flanneld --check-config FILE|-``: check a network configuration. Returns: the exit status."""
    try:
        config = NetworkConfig.parse(read_text(source))
        backends.check(config)
    except (CniError, OSError, ValueError) as fault:
        words = fault.strerror if isinstance(fault, OSError) and fault.strerror else fault
        print("\n".join(map(printable, f"flanneld: {source}: {words}".split("\n"))), file=sys.stderr)
        return 1
    for remark in [*backends.remarks(config), *host_networks.warnings_here(config.networks)]:
        print(printable(f"flanneld: {source}: {remark}"), file=sys.stderr)
    print(f"{source}: a network configuration for {config.backend_type} that can be used")
    return 0
