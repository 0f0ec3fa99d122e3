"""Free addresses of the networks, for ``cni-py status`` and the agent's metrics.

A network is known from calls that the agent has handled: ADD, also one that failed because no address
was free, and STATUS. Its ranges are computed for each report, as the plugin would do it now: a
changed subnet.env counts. Taken addresses are the file names of the reservations.
"""

from __future__ import annotations

import threading

from cni_py.errors import CniError
from cni_py.plugin_table import PLUGINS
from cni_py.plugins.usage import usage_of
from cni_py.spec.call import Call
from cni_py.spec.environment import is_name
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MAX_NETWORKS = 256


class RangeSetUsage(Value):
    """The addresses of one range set; ``total``: the number that can be allocated."""

    network: str
    range_set: str
    total: int
    taken: int

    @property
    def free(self) -> int:
        return self.total - self.taken

    def as_json(self) -> dict[str, Any]:
        """JSON object of ``cni-py status``."""
        return {
            "network": self.network,
            "range_set": self.range_set,
            "total": self.total,
            "taken": self.taken,
            "free": self.free,
        }


class IpamUsage:
    """The networks of past calls, and their usage; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[str, Call] = {}

    def record_call(self, call: Call) -> None:
        """Remember the network of a call."""
        if call.verb not in ("ADD", "STATUS") or not PLUGINS[call.plugin].gives_addresses or not is_name(call.network):
            return
        with self._lock:
            self._calls.pop(call.network, None)  # so that the network with the oldest call comes first
            self._calls[call.network] = call.replace(sandbox_fd=-1, stderr_fd=2)
            if len(self._calls) > MAX_NETWORKS:
                del self._calls[next(iter(self._calls))]

    def range_sets(self) -> list[RangeSetUsage]:
        """The range sets of all networks, sorted by network; without those whose ranges are unknown now."""
        with self._lock:
            calls = sorted(self._calls.items())
        found = []
        for network, call in calls:
            try:
                usage = usage_of(call)
            except CniError:  # such as a missing subnet.env, which the network's STATUS reports
                continue
            found += [RangeSetUsage(network, str(range_set), range_set.capacity(), taken) for range_set, taken in usage]
        return found
