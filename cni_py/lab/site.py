"""A lab that exists: its machines, nodes and pods by name, commands in them, pings between pods."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING

from cni_py import subnet_env
from cni_py.lab import plan
from cni_py.lab.ping import OUTSIDE_NAME, Matrix, ping
from cni_py.lab.programs import LabFailed, Programs, tool
from cni_py.lab.services import Service

if TYPE_CHECKING:
    from cni_py.lab.machine import Machine
    from cni_py.lab.plan import Node, Settings
    from cni_py.lab.state import Pod, State

SUBNET_FILE = "/run/flannel/subnet.env"
CONNECTED_SECONDS = 5.0
_IN_CURRENT_DIRECTORY = 'cd "$1" 2>/dev/null || cd /; shift; exec "$@"'


class Site:
    """Everything but creating and removing."""

    def __init__(self, state: State, directory: str) -> None:
        self.state, self.directory = state, directory
        self.programs = Programs.of(state.prefix)

    # ---- what exists --------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        return self.state.settings

    @property
    def flanneld_program(self) -> str:
        return self.settings.flanneld or self.programs.flanneld

    @property
    def switch(self) -> Machine:
        assert self.state.keeper is not None
        return self.state.keeper

    @property
    def nodes(self) -> list[str]:
        return [node.name for node in self.state.nodes]

    @property
    def pods(self) -> dict[str, Pod]:
        return self.state.pods

    def node(self, name: str) -> Node:
        """Raises: LabFailed."""
        found = [node for node in self.state.nodes if node.name == name]
        if not found:
            raise LabFailed(f'unknown node "{name}"', hint=f"nodes: {', '.join(self.nodes)}")
        return found[0]

    def machine(self, name: str) -> Machine:
        """Raises: LabFailed."""
        found = self.state.machines.get(name)
        if found is None:
            places = [*self.state.machines, *self.state.pods]
            raise LabFailed(f'unknown place "{name}"', hint=f"places: {', '.join(places)}")
        return found

    def netns_path(self, pod: Pod) -> str:
        """The pod's namespace as seen from outside."""
        return self.machine(pod.node).path(f"/run/netns/{pod.name}")

    def flanneld(self, node: str) -> Service:
        """The flanneld that was started last on a node."""
        return Service(self.machine(node), self.state.flanneld.get(node, 0), self.log_path(node))

    def service(self, name: str, node: str = "") -> Service:
        """``flanneld`` on a node, or ``etcd``."""
        if name == "flanneld":
            return self.flanneld(node)
        return Service(self.machine("etcd"), self.state.etcd, self.log_path("etcd"))

    def log_path(self, name: str) -> str:
        return f"{self.directory}/log/{name}.log"

    def log(self, name: str) -> str:
        """The log of a node's flanneld, or of etcd."""
        with open(self.log_path(name), errors="replace") as file:
            return file.read()

    def subnets(self, node: str) -> str:
        """The node's subnets from its subnet file; empty if flanneld has not written it."""
        env = self._subnet_env(node)
        return " and ".join(str(subnet) for subnet in env.subnets) if env else ""

    def _subnet_env(self, node: str) -> subnet_env.SubnetEnv | None:
        try:
            with open(self.state.machines[node].path(SUBNET_FILE)) as file:
                return subnet_env.parse(file.read())
        except (OSError, ValueError):
            return None

    def save(self) -> None:
        self.state.write(self.directory)

    # ---- commands -----------------------------------------------------------------------------

    def command(self, where: str, *argv: str) -> list[str]:
        """``argv`` as run on a machine or in a pod, in the current directory if it exists there. Raises: LabFailed."""
        pod = self.state.pods.get(where)
        inside = ["ip", "netns", "exec", pod.name] if pod else []
        machine = self.machine(pod.node if pod else where)
        return machine.command("sh", "-c", _IN_CURRENT_DIRECTORY, "sh", os.getcwd(), *inside, *argv)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of commands: the lab's programs, the network configuration, etcd."""
        environment = self.programs.environment()
        if self.settings.datastore == "etcd":
            environment |= {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": f"http://{plan.ETCD_ADDRESS}:2379"}
        return environment

    def run(self, where: str, script: str, *, check: bool = True, stdin: str = "") -> str:
        """Run a shell script (``sh -e``) on a machine or in a pod. Returns: its output. Raises: LabFailed if it fails."""
        argv = self.command(where, "sh", "-ec", script)
        done = subprocess.run(
            argv, input=stdin, env=self.environment, capture_output=True, text=True, errors="replace", check=False
        )
        if check and done.returncode != 0:
            raise LabFailed(f"{where}: {script!r} failed with {done.returncode}", (done.stdout + done.stderr).strip())
        return done.stdout

    # ---- connectivity -------------------------------------------------------------------------

    def ping(self, *, outside: bool = False, seconds: float = 1.0) -> Matrix:
        """Ping from every pod to every other one, small and full-sized; with ``outside``, to the host beyond the router too."""
        asked = {name: self._targets(pod, outside=outside) for name, pod in self.pods.items()}
        commands = {name: [tool("nsenter"), f"--net={self.netns_path(pod)}", "--"] for name, pod in self.pods.items()}
        return ping(commands, asked, seconds)

    def wait_connected(self, seconds: float = CONNECTED_SECONDS, *, outside: bool = False) -> Matrix:
        """Ping until all pods are reachable, or the time is over. Returns: the last result."""
        deadline = time.monotonic() + seconds
        while not (matrix := self.ping(outside=outside, seconds=0.5)).is_complete and time.monotonic() < deadline:
            pass
        return matrix

    def _targets(self, source: Pod, *, outside: bool) -> list[tuple[str, str, int]]:
        """Name, address and full packet size of what a pod pings; the size is the smaller MTU of both ends."""
        own = self._mtu(source)
        targets = [
            (pod.name, address, min(own, self._mtu(pod)))
            for pod in self.pods.values()
            if pod.name != source.name
            for address in pod.addresses
        ]
        beyond = [(OUTSIDE_NAME, plan.OUTSIDE)] if self.settings.ipv4 else []
        beyond += [(OUTSIDE_NAME, plan.OUTSIDE6)] if self.settings.ipv6 else []
        return targets + ([(name, address, own) for name, address in beyond] if outside else [])

    def _mtu(self, pod: Pod) -> int:
        env = self._subnet_env(pod.node)
        return env.mtu if env else 0
