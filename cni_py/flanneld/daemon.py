"""flanneld: from its options to a node whose pods reach those of the other nodes, and stay so.

How it works. :class:`Daemon` owns the process: datastore, signals, health, systemd. It runs one
:class:`~cni_py.flanneld.session.Session` after the other; a session begins with a look at the external interface
and ends when that, or the node's subnet, is another. SIGTERM leaves the data path as it is.

Source: flannel-io/flannel main.go.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

from cni_py import __version__
from cni_py.datastore.errors import StoreError
from cni_py.errors import CniError, NotAvailable
from cni_py.flanneld import backends, commands, iface, saved
from cni_py.flanneld.host_networks import HostNetworks
from cni_py.flanneld.network import NetworkConfig
from cni_py.flanneld.only_one import only_one
from cni_py.flanneld.options import Options, UsageError, parse
from cni_py.flanneld.session import Session
from cni_py.flanneld.subnet_file import journal_path, read_subnets
from cni_py.netlink.monitor import Watch
from cni_py.node import bridge_netfilter, systemd
from cni_py.node.changes import because, begin_journal, finish, keep_journal
from cni_py.node.health import Health
from cni_py.node.log import error, info, set_verbosity, shortened, warning, warning_once
from cni_py.node.memory import use_one_heap
from cni_py.node.status import RETRY_SECONDS, Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cni_py.flanneld.lease import Attributes, Subnets
    from cni_py.flanneld.stores import Store

LONGEST_PAUSE_SECONDS = 30.0
"""Longest pause between two restarts of a session."""


class Daemon:
    """The process."""

    def __init__(self, options: Options, store: Store) -> None:
        self.options, self.store = options, store
        health = Health(options.healthz_ip, options.healthz_port)
        self.status = Status("flannel", health, self._publish, self._wake)
        self.session: Session | None = None
        self.host_networks = HostNetworks(options)
        self._said: set[str] = set()

    def run(self) -> int:
        """Run until SIGTERM or SIGINT. Returns: the exit status. Raises: CniError where it cannot begin."""
        for text in self.options.warnings:
            warning(text)
        info(f"Created subnet manager: {self.store}")
        info("Installing signal handlers")
        for number in (signal.SIGTERM, signal.SIGINT):
            # in a thread: the main thread may be holding the lock of the event that is to be set
            signal.signal(number, lambda *_: _thread.start_new_thread(self.status.end, ()))
        if self.options.healthz_port:
            self._start_health()
        is_first, trouble, pause_seconds = True, "", RETRY_SECONDS
        while not self.status.stop.is_set():
            try:
                self._run_session()
                is_first, trouble, pause_seconds = False, "", RETRY_SECONDS
            except (CniError, OSError) as fault:
                if self.status.stop.is_set():
                    info(f"left undone: {fault}")
                    break
                if is_first:
                    raise
                if str(fault) != trouble:
                    trouble = str(fault)
                    error(f"restart failed, retrying: {trouble}")
                self.status.not_ready(trouble)
                self._pause_until_news(pause_seconds)
                pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
        systemd.notify("STOPPING=1")
        info("Waiting for all goroutines to exit")
        self.store.close()
        info("Exiting cleanly...")
        return 1 if self.status.has_failed else 0

    def _start_health(self) -> None:
        """Raises: NotAvailable."""
        ip, port = self.options.healthz_ip, self.options.healthz_port
        try:
            self.status.health.start()
        except OSError as error:
            hint = f"choose another -healthz-port, or see: ss -tlnp sport = :{port}"
            raise NotAvailable(
                f"the health server cannot listen on {ip}, TCP port {port}", error.strerror or "", hint
            ) from error

    def _wake(self) -> None:
        """End what waits, in whatever thread."""
        backends.ENDING.set()
        if self.session is not None:
            self.session.ended.set()

    def _publish(self) -> None:
        try:
            self.store.ready()
        except StoreError as fault:
            warning(f"could not notify the datastore that the network works: {fault}")

    def _pause_until_news(self, seconds: float) -> None:
        """Wait before a restart: a second, and more unless an interface or an address changes."""
        deadline = monotonic() + seconds
        with Watch(("link", "addr")) as watch:
            self.status.pause()
            while not self.status.stop.is_set() and monotonic() < deadline and not watch.wait(RETRY_SECONDS):
                self.status.beat()

    def _run_session(self) -> None:
        """Raises: CniError, OSError."""
        known = saved.read(saved.path_for(self.options.subnet_file))
        text = self._network_config(may_give_up=known is not None)
        if text is None and (known is None or known.leases() is None):  # nor is there anything saved that can be used
            text = self._network_config(may_give_up=False)
        if self.status.stop.is_set():
            return
        if text is None:
            assert known is not None, "there are saved leases"
            warning(f"no network configuration now: forwarding by what was saved, subnet {known.own.subnets}")
        config_text = known.config if known is not None and text is None else str(text)
        config = NetworkConfig.parse(config_text)
        if not self.options.allow_commands and (text_of := backends.warning_of_commands(config)):
            warning_once(text_of, self._said)
        if isinstance(masq := self.options.ip_masq, str) and not (config.ipv4 if masq == "ipv4" else config.ipv6):
            warning_once(f"-ip-masq={masq} has no effect: the network does not have that family", self._said)
        self._take_stored_addresses()
        if self.options.iface_node_ip:
            self._take_node_addresses(known.own.attributes if known else None)
            if self.status.stop.is_set():
                return
        external = iface.find(self.options, config.ipv4, config.ipv6)
        former = known.own.attributes if known else self._stored_attributes(config)
        for fault in bridge_netfilter.faults(config.ipv4, config.ipv6):
            warning_once(fault, self._said)
        own = known.own.subnets if known else read_subnets(self.options.subnet_file)
        self.host_networks.begin(config.networks, own, _subnets_of(known))
        networks = NetworkConfig.parse(known.config).networks if known else []
        session = self.session = Session(
            self.options,
            self.store,
            self.status,
            config_text,
            external,
            former,
            self.host_networks,
            networks,
            [*([own] if own else []), *(known.former if known else ())],
        )
        try:
            because(f"a session begins: {config.backend_type} over {external.name}")
            session.begin(known if known is not None and _is_same(known.config, config) else None, is_answered=text is not None)
            finish()
            known = None  # a session lasts, and has what it needs of it
            if not self.status.stop.is_set():
                session.keep()
        finally:
            session.close()

    def _take_stored_addresses(self) -> None:
        """Take the node's own entry: if it says by which addresses it is reached (Kubernetes), these go before the options."""
        try:
            ipv4, ipv6 = self.store.stored_addresses()
        except StoreError as fault:
            warning(f"the node's public addresses could not be read, going by the options: {fault}")
            return
        public_ip, public_ipv6 = str(ipv4 or self.options.public_ip), str(ipv6 or self.options.public_ipv6)
        self.options = replace(self.options, public_ip=public_ip, public_ipv6=public_ipv6)

    def _take_node_addresses(self, former: Attributes | None) -> None:
        """Take those by which Kubernetes knows the node, waited for; those of a last lease until the API responds."""
        while not self.status.stop.is_set():
            try:
                found = self.store.node_addresses()
            except StoreError as fault:
                self.status.say_once(f"the node's InternalIP is not known: {fault}")
                if former is None:
                    self.status.not_ready(f"the node's InternalIP is not known: {fault}")
                    self.status.pause()
                    continue
                found = former.addresses
            self.options = replace(self.options, node_addresses=tuple(map(str, found)))
            return

    def _stored_attributes(self, config: NetworkConfig) -> Attributes | None:
        """Return what a node's own entry keeps of our last lease (Kubernetes): the MAC address of its VXLAN device."""
        try:
            lease = self.store.stored_lease(config)
        except StoreError:  # the next question to the datastore logs it
            return None
        return lease.attributes if lease else None

    def _network_config(self, may_give_up: bool) -> str | None:
        """The configuration's text, waited for; None where we are to stop, or something was saved and it does not come."""
        while not self.status.stop.is_set():
            try:
                text = self.store.read_network_config()
                config = NetworkConfig.parse(text)
            except (StoreError, CniError) as fault:
                self.status.say_once(f"Couldn't fetch network config: {fault}")
                self.status.not_ready(f"no network configuration: {fault}")
                if may_give_up:
                    return None
                self.status.pause()
            else:
                self.status.forget_said()
                info(f"Found network config - Backend type: {shortened(config.backend_type)}")
                for remark in backends.remarks(config):
                    warning(remark)
                return text
        return None


def _is_same(text: str, config: NetworkConfig) -> bool:
    """Return whether a saved configuration says the same: only then its leases say what is right now."""
    try:
        return NetworkConfig.parse(text) == config
    except CniError:
        return False


def _subnets_of(known: saved.Saved | None) -> Iterator[Subnets]:
    """The subnets of the saved leases; they are read where they are asked for."""
    yield from (known.leases() or ()) if known is not None else ()


def open_store(options: Options) -> Store:
    """The datastore that the options name. Raises: CniError, StoreError."""
    previous = read_subnets(options.subnet_file)
    if options.kube_subnet_mgr:
        from cni_py.flanneld.stores.kubernetes import KubeStore

        return KubeStore(options)
    if options.datastore:
        from cni_py.flanneld.stores.file import FileStore

        return FileStore(options.datastore.removeprefix("file:"), os.uname().nodename)
    from cni_py.flanneld.stores.etcd import EtcdStore

    return EtcdStore.from_options(options, previous)


def main() -> int:
    """``flanneld``: see ``flanneld --help`` and docs/flanneld.md. Returns: its exit status."""
    try:
        options = parse(sys.argv[1:], os.environ)
    except UsageError as fault:
        print(f"flanneld: {fault}", file=sys.stderr)
        return 2
    if options.version:
        print(__version__)
        return 0
    if options.check_config:
        return commands.check_config(options.check_config)
    if os.geteuid() != 0:
        print("flanneld: it must be run as root (it makes links, routes and rules)", file=sys.stderr)
        return 1
    set_verbosity(options.v)
    begin_journal("" if options.cleanup else journal_path(options.subnet_file))
    keep_journal("flanneld starts")
    return commands.cleanup(options) if options.cleanup else run(options)


def run(options: Options) -> int:
    """Run as a daemon. Returns: the exit status."""
    info(f"CLI flags config: {options.redacted()}")
    use_one_heap()
    try:
        with only_one(options.subnet_file):
            return Daemon(options, open_store(options)).run()
    except (CniError, StoreError, OSError) as fault:
        error(f"flanneld cannot run: {fault}")
        return 1
