"""Watch the external interface: where it, its addresses or its MTU are others, everything begins again with the new one."""

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

LOOK_SECONDS = 10.0
"""How often it is looked at, even if nothing was reported of it."""


def watch_interface(
    options: Options, config: NetworkConfig, external: ExternalInterface, stop: Stop, changed: Callable[[], None]
) -> None:
    """Call ``changed`` when the external interface is no longer as ``external``; returns then, or at ``stop``."""
    with Watch(("link", "addr")) as watch, Wake() as wake, stop.calling(wake.set):
        next_look = monotonic()  # it may have changed since this session's beginning
        while not stop.is_set():
            select.select([watch.fileno(), wake.fileno()], [], [], max(next_look - monotonic(), 0.0))
            if stop.is_set() or (not watch.wait(0) and monotonic() < next_look):
                continue
            next_look = monotonic() + LOOK_SECONDS
            try:
                now = iface.find(options, config.ipv4, config.ipv6, quiet=True)
            except CniError:  # down for a moment: what was set up comes back with it
                continue
            if now != external:
                info(f"the external interface is another now: {now}, it was {external}")
                changed()
                return
