"""Watch the external interface, and the host's own networks.

Where the interface, its addresses or its MTU are others, everything begins again with the new one.
"""

from __future__ import annotations

import select
from time import monotonic
from typing import TYPE_CHECKING

from cni_py.errors import CniError
from cni_py.flanneld import iface
from cni_py.netlink.monitor import Watch
from cni_py.node.log import info
from cni_py.node.stop import Wake

if TYPE_CHECKING:
    from collections.abc import Callable

    from cni_py.flanneld.iface import ExternalInterface
    from cni_py.flanneld.network import NetworkConfig
    from cni_py.flanneld.options import Options
    from cni_py.node.stop import Stop

LOOK_SECONDS = 30.0
"""Interval of checks without a notification: the default route is not watched, for a node has thousands of routes."""


def watch_interface(
    options: Options,
    config: NetworkConfig,
    external: ExternalInterface,
    stop: Stop,
    changed: Callable[[], None],
    look_at_host: Callable[[], None],
) -> None:
    """Watch until ``stop``, or until the external interface has changed.

    Args:
        external: the interface as it was.
        changed: called when it has changed.
        look_at_host: called when an address of the host may have changed. Raises: CniError.
    """
    with Watch(("link", "addr")) as watch, Wake() as wake, stop.calling(wake.set):
        next_look = monotonic()  # it may have changed since this session's beginning
        while not stop.is_set():
            select.select([watch.fileno(), wake.fileno()], [], [], max(next_look - monotonic(), 0.0))
            if stop.is_set():
                return
            reported = watch.wait(0)
            if not reported and monotonic() < next_look:
                continue
            next_look = monotonic() + LOOK_SECONDS
            try:
                if "link" not in reported or "addr" in reported:
                    look_at_host()
                now = iface.find(options, config.ipv4, config.ipv6, quiet=True)
            except CniError:  # down for a moment: what was set up comes back with it
                continue
            if now != external:
                info(f"the external interface is another now: {now}, it was {external}")
                changed()
                return
