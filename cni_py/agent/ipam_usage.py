"""How many addresses the networks have left, for ``cni-py status`` and the agent's metrics.

A network is known from the calls that the agent has answered: ADD, also one that failed because nothing
was left, and STATUS. Its ranges are worked out when they are asked for, as the plugin would do it now: a
subnet.env that has changed counts. What is taken is told by the names of the reservations.
"""

from __future__ import annotations

import threading

from cni_py import config, subnet_env
from cni_py.errors import CniError
from cni_py.plugin_table import PLUGINS
from cni_py.plugins.ipam import host_local
from cni_py.plugins.meta import flannel
from cni_py.spec.call import Call
from cni_py.spec.environment import is_name
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.ipam.ranges import RangeSet

MAX_NETWORKS = 256


class Pool(Value):
    """The addresses of one range set; ``total``: how many can be given."""

    network: str
    range_set: str
    total: int
    taken: int

    @property
    def free(self) -> int:
        return self.total - self.taken

    def as_json(self) -> dict[str, object]:
        return {
            "network": self.network,
            "range_set": self.range_set,
            "total": self.total,
            "taken": self.taken,
            "free": self.free,
        }


class Networks:
    """The networks that calls have named; every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[str, Call] = {}

    def saw(self, call: Call) -> None:
        """Take note of the configuration of a call that was answered."""
        if call.verb not in ("ADD", "STATUS") or not PLUGINS[call.plugin].gives_addresses or not is_name(call.network):
            return
        with self._lock:
            self._calls.pop(call.network, None)  # the one that was not named for the longest time is the first
            self._calls[call.network] = call.replace(sandbox_fd=-1, stderr_fd=2)
            if len(self._calls) > MAX_NETWORKS:
                del self._calls[next(iter(self._calls))]

    def pools(self) -> list[Pool]:
        """By network, its range sets in order; nothing of a network whose ranges cannot be told now."""
        with self._lock:
            calls = sorted(self._calls.items())
        found = []
        for network, call in calls:
            try:
                usage = _usage(call)
            except CniError:  # subnet.env is missing, say: the network's STATUS tells of it
                continue
            found += [Pool(network, str(range_set), range_set.capacity(), taken) for range_set, taken in usage]
        return found


def as_prometheus(pools: list[Pool]) -> str:
    """Gauges, a line for each range set."""
    lines = []
    for gauge, key in (("addresses", "total"), ("addresses_taken", "taken"), ("addresses_free", "free")):
        lines.append(f"# TYPE cni_py_{gauge} gauge")
        lines += [
            f'cni_py_{gauge}{{network="{pool.network}",range_set="{pool.range_set}"}} {pool.as_json()[key]}' for pool in pools
        ]
    return "\n".join(lines) + "\n"


def _usage(call: Call) -> list[tuple[RangeSet, int]]:
    """Range sets and how much of each is taken; none where host-local does not give the addresses. Raises: CniError."""
    conf = call.conf
    if call.plugin == "flannel":
        settings = config.parse(flannel.CONFIG, conf)
        conf = flannel.delegate_conf(call, settings, subnet_env.read(settings.subnet_file))
    ipam = conf.get("ipam")
    if not isinstance(ipam, dict) or (ipam.get("type") != "host-local" and call.plugin != "host-local"):
        return []
    return host_local.usage(call.replace(conf=conf), config.parse(host_local.CONFIG, conf))
