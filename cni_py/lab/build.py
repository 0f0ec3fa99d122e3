"""Creating the parts of a lab: machines and cables, the datastore, nodes with flanneld and pods."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cni_py.lab import machine, plan, services
from cni_py.lab.services import Notice, Service
from cni_py.lab.site import SUBNET_FILE
from cni_py.lab.state import Pod

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from cni_py.lab.plan import Node
    from cni_py.lab.site import Site

WORKERS = 8
SHOWN = 6

# accept_dad=0: the addresses are the pods' own, and waiting until IPv6 has made sure takes a second or two.
_ATTACH = """
ip netns add "$1"
ip -n "$1" link set lo up
ip netns exec "$1" sh -c 'for which in all default; do
    if [ -d /proc/sys/net/ipv6 ]; then echo 0 >/proc/sys/net/ipv6/conf/$which/accept_dad; fi; done'
exec "$2" add "$3" "/run/netns/$1"
"""


class Builder:
    """Adds parts to a site, and to its state before they are used: a process that is killed leaves nothing unknown.

    ``progress``: called with a line for each step.
    """

    def __init__(self, site: Site, progress: Callable[[str], None] = lambda _: None) -> None:
        self.site, self.state, self.settings = site, site.state, site.settings
        self._progress = progress
        self._interrupted = threading.Event()

    def create_machines(self) -> None:
        """The switch, the router, the outside, etcd's machine."""
        keeper = self.site.switch
        names = ["router", "outside", *(["etcd"] if self.settings.datastore == "etcd" else [])]
        machines = {one.name: one for one in machine.start(keeper, self.site.directory, names, ["router"])}
        self.state.machines = {"switch": keeper} | machines
        self.site.save()
        pids = machines["router"].pid, machines["outside"].pid
        keeper.configure(plan.switch_commands(self.settings.segments, *pids))
        machines["router"].configure(plan.router_commands(self.settings))
        machines["outside"].configure(plan.outside_commands(self.settings))
        if "etcd" in machines:
            keeper.configure(plan.port_commands("etcd", 1, machines["etcd"].pid))
            machines["etcd"].configure(plan.etcd_commands(self.settings))

    # ---- datastore ----------------------------------------------------------------------------

    def start_datastore(self) -> None:
        config = plan.as_json(self.settings.config)
        if self.settings.datastore == "etcd":
            services.put_config(self.start_etcd(), config)
            self._progress(f"etcd          {plan.ETCD_ADDRESS}:2379, {plan.CONFIG_KEY} is {config}")
            return
        path = f"{self.site.directory}/shared/flannel.json"
        with open(path, "w") as file:
            json.dump({"config": self.settings.config, "leases": {}}, file, indent=2)
        self._progress(f"datastore     {path}, its config is {config}")

    def start_etcd(self) -> Service:
        command = plan.etcd_command("/run/etcd")
        environment = self.site.programs.environment()
        service = services.start(self.state.machines["etcd"], command, self.site.log_path("etcd"), environment)
        self.state.etcd = service.pid
        self.site.save()
        services.wait_for_etcd(service)
        return service

    # ---- nodes --------------------------------------------------------------------------------

    def add_nodes(self, nodes: Sequence[Node]) -> None:
        """Machines, then flanneld, then pods, each on all of these nodes in parallel."""
        self._create_nodes(nodes)
        names = [node.name for node in nodes]
        with self._pool(len(nodes)) as pool:
            wait(pool.map(self._prepare_node, nodes))
            self._progress(f"nodes         {listed([f'{node.name} {self._address(node)}' for node in nodes])}")
            began = time.monotonic()
            self.state.flanneld |= dict(zip(names, pool.map(lambda node: self.start_flanneld(node).pid, nodes), strict=True))
            self.site.save()
            leased = [f"{name} {self.site.subnets(name)}" for name in names]
            seconds = time.monotonic() - began
            self._progress(f"flanneld      {listed(leased)} ({self.settings.backend}, {seconds:.1f} s)")
            pods = list(pool.map(lambda one: self._attach(*one), self._new_pods(names)))
        self.state.pods |= {pod.name: pod for pod in pods}
        self.site.save()
        if pods:
            self._progress(f"pods          {listed([f'{pod.name} {pod.addresses[0]}' for pod in pods])}")

    def _create_nodes(self, nodes: Sequence[Node]) -> None:
        names = [node.name for node in nodes]
        machines = machine.start(self.site.switch, self.site.directory, names, names)
        self.state.machines |= {one.name: one for one in machines}
        self.state.nodes += nodes
        self.site.save()
        ports = [plan.port_commands(node.name, node.segment, one.pid) for node, one in zip(nodes, machines, strict=True)]
        self.site.switch.configure([line for port in ports for line in port])

    def _prepare_node(self, node: Node) -> None:
        conflist, one = self.site.programs.conflist, self.state.machines[node.name]
        one.configure(plan.node_commands(node, self.settings))
        shutil.copyfile(conflist, one.path(f"/etc/cni/net.d/{os.path.basename(conflist)}"))
        if self.settings.numbered:
            os.makedirs(one.path(os.path.dirname(SUBNET_FILE)), exist_ok=True)
            with open(one.path(SUBNET_FILE), "w") as file:
                file.write(plan.former_subnet_file(node, self.settings))

    def start_flanneld(self, node: Node) -> Service:
        """Start it, and wait until it notifies that it is ready. Raises: LabFailed."""
        one = self.state.machines[node.name]
        notice = Notice(self.site.directory, one)
        try:
            command = plan.flanneld_command(self.site.flanneld_program, node, self.settings)
            environment = self.site.programs.environment() | notice.environment
            service = services.start(one, command, self.site.log_path(node.name), environment)
            notice.wait_ready(service, self._interrupted)
            return service
        finally:
            notice.close()

    def _new_pods(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """Names of the pods of new nodes, each with its node."""
        first = 1 + max((int(name.removeprefix("pod")) for name in self.state.pods), default=0)
        nodes = [name for name in names for _ in range(self.settings.pods)]
        return [(f"pod{number}", node) for number, node in enumerate(nodes, first)]

    def _attach(self, pod: str, node: str) -> Pod:
        """A network namespace on a node, attached by the plugins as by a container runtime. Raises: LabFailed."""
        programs = self.site.programs
        with open(programs.conflist) as file:
            network = json.load(file)["name"]
        argv = ["sh", "-ec", _ATTACH, "sh", pod, programs.cni_py, network]
        result = json.loads(self.state.machines[node].run(*argv, env=programs.environment()))
        return Pod(pod, node, tuple(entry["address"].partition("/")[0] for entry in result["ips"]))

    def _address(self, node: Node) -> str:
        return node.address if self.settings.ipv4 else node.address6

    @contextmanager
    def _pool(self, nodes: int) -> Iterator[ThreadPoolExecutor]:
        """Threads that stop waiting when one of them fails, or on Ctrl-C."""
        pool = ThreadPoolExecutor(max(WORKERS, nodes))
        try:
            yield pool
        except BaseException:
            self._interrupted.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            self._interrupted.clear()


def listed(items: Sequence[str]) -> str:
    """One line: of many items the first ones and the last."""
    return ", ".join(items if len(items) <= SHOWN else [*items[: SHOWN - 2], "...", items[-1]])


def wait(results: Iterable[object]) -> None:
    """Wait for what a pool does, and raise its first error."""
    for _ in results:
        pass
