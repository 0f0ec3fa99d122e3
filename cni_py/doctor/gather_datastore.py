"""The configuration and leases in flannel's datastore, within a bounded time. Changes nothing."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from cni_py.datastore.errors import Unavailable
from cni_py.flanneld.network import NetworkConfig
from cni_py.node.log import silence

if TYPE_CHECKING:
    from cni_py.flanneld.lease import Lease, Subnets
    from cni_py.flanneld.options import Options
    from cni_py.flanneld.stores.etcd import EtcdStore
    from cni_py.flanneld.stores.file import FileStore

SECONDS = 1.5


def read(options: Options) -> tuple[NetworkConfig, dict[Subnets, Lease]]:
    """Return the network's configuration, and every lease and reservation by its subnets. Raises: StoreError, CniError."""
    with silence():
        store = _open(options)
        found: list[tuple[str, list[Lease]]] = []
        faults: list[Exception] = []

        def ask() -> None:
            try:
                found.append((store.read_network_config(), store.listed()))
            except Exception as error:  # noqa: BLE001 — raised below, in the caller's thread
                faults.append(error)

        asking = threading.Thread(target=ask, name="datastore", daemon=True)
        asking.start()
        asking.join(SECONDS)
        is_late = asking.is_alive()
        store.close()
        asking.join(SECONDS)
    if is_late:
        raise Unavailable(f"the datastore did not respond within {SECONDS} s")
    if faults:
        raise faults[0]
    text, leases = found[0]
    return NetworkConfig.parse(text), {lease.subnets: lease for lease in leases}


def _open(options: Options) -> EtcdStore | FileStore:
    """Open the store that the options name. Raises: CniError."""
    if options.datastore:
        from cni_py.flanneld.stores.file import FileStore

        return FileStore(options.datastore.removeprefix("file:"), "")
    from cni_py.flanneld.stores.etcd import EtcdStore

    return EtcdStore.from_options(options, None)
