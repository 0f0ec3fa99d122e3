"""The lab itself: made, used, broken, healed and taken down. Each method is one story; the steps are in the other modules."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cni_py import subnet_env
from cni_py.lab import machine, plan, services
from cni_py.lab.machine import Keeper, Machine
from cni_py.lab.ping import OUTSIDE_NAME, Matrix, ping
from cni_py.lab.plan import Node, Settings
from cni_py.lab.programs import LabFailed, Programs, check
from cni_py.lab.services import Notice, Service
from cni_py.lab.state import CONTENT, Pod, State, take_down, write_keeper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

FOLDER = "/run/cni-py/lab"
NETNS_FOLDER, NAME = "/run/netns", "cni-lab-"
SUBNET_FILE = "/run/flannel/subnet.env"
CONNECTED_SECONDS = 5.0
WORKERS = 8
SHOWN = 6

# the pod's addresses are its own: nobody has to ask whether they are taken, which takes IPv6 a second or two
_ATTACH = """
ip netns add "$1"
ip -n "$1" link set lo up
ip netns exec "$1" sh -c 'for which in all default; do
    if [ -d /proc/sys/net/ipv6 ]; then echo 0 >/proc/sys/net/ipv6/conf/$which/accept_dad; fi; done'
exec "$2" add "$3" "/run/netns/$1"
"""
_HERE = 'cd "$1" 2>/dev/null || cd /; shift; exec "$@"'


class Lab:
    """N nodes with flanneld and pods. A context manager; ``up()`` and ``down()`` by hand do the same.

    Args:
        backend: ``Backend.Type``, and ``backend_options`` its other keys (``{"DirectRouting": True}``).
        ipv6: dual stack; with ``ipv4=False`` IPv6 alone.
        datastore: ``file`` or ``etcd``.
        segments: 2 puts every other node behind the router.
        pods: on each node.
        config: the whole network configuration, in place of what the other arguments make.
        flanneld: another flanneld than this installation's; ``flanneld_options``: added to its command line.
        prefix: use what is installed there.
        folder: for state and logs; empty: a new one under the system's temporary folder.
        progress: told what has been done, a line at a time.
    """

    def __init__(
        self,
        nodes: int = 3,
        backend: str = "vxlan",
        ipv6: bool = False,
        datastore: str = "file",
        segments: int = 1,
        *,
        ipv4: bool = True,
        pods: int = 1,
        backend_options: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        flanneld: str = "",
        flanneld_options: Iterable[str] = (),
        prefix: str = "",
        folder: str = "",
        progress: Callable[[str], None] | None = None,
    ) -> None:
        settings = plan.make_settings(
            nodes,
            backend,
            ipv6,
            datastore,
            segments,
            ipv4=ipv4,
            pods=pods,
            backend_options=backend_options or {},
            config=config,
            flanneld=os.path.abspath(flanneld) if flanneld else "",
            flanneld_options=flanneld_options,
        )
        self._use(State(settings, os.path.abspath(prefix) if prefix else ""), folder, progress)

    def _use(self, state: State, folder: str, progress: Callable[[str], None] | None = None) -> None:
        self.state, self.folder, self._progress = state, folder, progress
        self.programs = Programs.of(state.prefix)
        self._keeper: Keeper | None = None
        self._interrupted = threading.Event()

    @classmethod
    def open(cls, folder: str = FOLDER) -> Lab:
        """The lab that was made in this folder. Raises: LabFailed where there is none, or it has ended."""
        state = State.read(folder)
        if state is None:
            raise LabFailed("there is no lab", hint="cni-py lab up")
        if not state.is_alive:
            hint = "cni-py lab down removes what is left of it, cni-py lab up makes a new one"
            raise LabFailed("the lab has ended: its first process was killed, and everything in it with it", hint=hint)
        lab = cls.__new__(cls)
        lab._use(state, folder)
        return lab

    def __enter__(self) -> Lab:
        self.up()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.down()

    # ---- up and down --------------------------------------------------------------------------

    def up(self) -> None:
        """Make everything; after a failure, nothing is left. Raises: LabFailed."""
        settings, state = self.settings, self.state
        check(self.programs, flanneld=self.flanneld_program, with_etcd=settings.datastore == "etcd")
        if self.folder and (old := State.read(self.folder)) is not None:
            if old.is_alive:
                raise LabFailed(f"there is a lab already, in {self.folder}", hint="cni-py lab status; cni-py lab down")
            take_down(self.folder)
            self._say("removed what was left of a lab that had ended")
        state.since = time.time()
        self._make_folder()
        try:
            state.folders = machine.make_mount_points()
            self.save()
            self._keeper = Keeper()
            state.keeper = self._keeper.machine
            write_keeper(self.folder, state.keeper)
            self._make_machines()
            self._start_datastore()
            nodes = [Node(number, settings.segments) for number in range(1, settings.nodes + 1)]
            self._add_nodes(nodes)
            if self.folder == FOLDER:
                self._make_names()
            state.complete = True
            self.save()
        except BaseException:
            self.down()
            raise

    def stay(self) -> None:
        """The lab stays when this process ends."""
        if self._keeper is not None:
            self._keeper.stay()

    def down(self) -> None:
        """End and remove everything, also what kills have left. Twice is fine. Raises: LabFailed."""
        try:
            take_down(self.folder)
        finally:
            if self._keeper is not None:
                self._keeper.close()

    def _make_folder(self) -> None:
        """The state comes first: by it a folder is known to be ours, and removed. Raises: LabFailed."""
        if self.folder:
            os.makedirs(self.folder, 0o700, exist_ok=True)
        else:
            self.folder = tempfile.mkdtemp(prefix="cni-lab-")
        if foreign := set(os.listdir(self.folder)) - set(CONTENT):
            raise LabFailed(f'"{self.folder}" is no folder of a lab', f"{min(foreign)} is in it", "name an empty or a new one")
        self.save()
        for name in ("stage", "log", "shared"):
            os.makedirs(f"{self.folder}/{name}", exist_ok=True)

    def _make_machines(self) -> None:
        """The switch, the router, the outside, etcd's machine."""
        state, settings, keeper = self.state, self.settings, self.switch
        names = ["router", "outside", *(["etcd"] if settings.datastore == "etcd" else [])]
        made = {made.name: made for made in machine.start(keeper, self.folder, names, ["router"])}
        state.machines = {"switch": keeper} | made
        self.save()
        keeper.configure(plan.switch_commands(settings.segments, made["router"].pid, made["outside"].pid))
        made["router"].configure(plan.router_commands(settings))
        made["outside"].configure(plan.outside_commands(settings))
        if "etcd" in made:
            keeper.configure(plan.port_commands("etcd", 1, made["etcd"].pid))
            made["etcd"].configure(plan.etcd_commands(settings))

    def _start_datastore(self) -> None:
        if self.settings.datastore == "etcd":
            etcd = self.start_etcd()
            services.put_config(etcd, plan.as_json(self.settings.config))
            self._say(f"etcd          {plan.ETCD_ADDRESS}:2379, {plan.CONFIG_KEY} is {plan.as_json(self.settings.config)}")
            return
        with open(f"{self.folder}/shared/flannel.json", "w") as file:
            json.dump({"config": self.settings.config, "leases": {}}, file, indent=2)
        self._say(f"datastore     {self.folder}/shared/flannel.json, its config is {plan.as_json(self.settings.config)}")

    def start_etcd(self) -> Service:
        etcd = self.state.machines["etcd"]
        command = plan.etcd_command("/run/etcd")
        service = services.start(etcd, command, f"{self.folder}/log/etcd.log", self.programs.environment())
        self.state.etcd = service.pid
        self.save()
        services.wait_for_etcd(service)
        return service

    def _add_nodes(self, nodes: Sequence[Node]) -> None:
        """Machines, then flanneld, then pods, on all of these nodes at once."""
        state, settings = self.state, self.settings
        names = [node.name for node in nodes]
        made = machine.start(self.switch, self.folder, names, names)
        state.machines |= {one.name: one for one in made}
        state.nodes += nodes
        self.save()
        ports = [plan.port_commands(node.name, node.segment, one.pid) for node, one in zip(nodes, made, strict=True)]
        self.switch.configure([line for port in ports for line in port])
        with self._pool(len(nodes)) as pool:
            wait(pool.map(self._prepare_node, nodes))
            self._say(f"nodes         {listed([f'{node.name} {self._address(node)}' for node in nodes])}")
            began = time.monotonic()
            state.flanneld |= dict(zip(names, pool.map(lambda node: self.start_flanneld(node).pid, nodes), strict=True))
            self.save()
            leased = [f"{name} {self.subnets(name)}" for name in names]
            self._say(f"flanneld      {listed(leased)} ({settings.backend}, {time.monotonic() - began:.1f} s)")
            first = 1 + max((int(name.removeprefix("pod")) for name in state.pods), default=0)
            wanted = [(f"pod{first + i}", node) for i, node in enumerate(n for n in names for _ in range(settings.pods))]
            pods = list(pool.map(lambda one: self._attach(*one), wanted))
        state.pods |= {pod.name: pod for pod in pods}
        self.save()
        if pods:
            self._say(f"pods          {listed([f'{pod.name} {pod.addresses[0]}' for pod in pods])}")

    @contextmanager
    def _pool(self, nodes: int) -> Iterator[ThreadPoolExecutor]:
        """Workers that give up what they wait for when one of them fails, or somebody presses Ctrl-C."""
        pool = ThreadPoolExecutor(max(WORKERS, nodes))
        try:
            yield pool
        except BaseException:
            self._interrupted.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
            self._interrupted.clear()

    def _address(self, node: Node) -> str:
        return node.address if self.settings.ipv4 else node.address6

    def _prepare_node(self, node: Node) -> None:
        made = self.state.machines[node.name]
        made.configure(plan.node_commands(node, self.settings))
        shutil.copyfile(self.programs.conflist, made.path(f"/etc/cni/net.d/{os.path.basename(self.programs.conflist)}"))

    def start_flanneld(self, node: Node) -> Service:
        """Start it and wait until it says that it is ready."""
        made = self.state.machines[node.name]
        notice = Notice(self.folder, made)
        try:
            command = plan.flanneld_command(self.flanneld_program, node, self.settings)
            environment = self.programs.environment() | notice.environment
            service = services.start(made, command, self._log(node.name), environment)
            notice.wait_ready(service, self._interrupted)
            return service
        finally:
            notice.close()

    def _attach(self, pod: str, node: str) -> Pod:
        """A network namespace on a node, attached by the plugins as a container runtime would."""
        with open(self.programs.conflist) as file:
            network = json.load(file)["name"]
        argv = ["sh", "-ec", _ATTACH, "sh", pod, self.programs.cni_py, network]
        result = json.loads(self.state.machines[node].run(*argv, env=self.programs.environment()))
        return Pod(pod, node, tuple(entry["address"].partition("/")[0] for entry in result["ips"]))

    def _make_names(self) -> None:
        """For ``ip netns``: names as links into /proc, which keep nothing alive."""
        os.makedirs(NETNS_FOLDER, exist_ok=True)
        places = {name: f"/proc/{one.pid}/ns/net" for name, one in self.state.machines.items()}
        places |= {pod.name: self._netns(pod) for pod in self.state.pods.values()}
        for name, place in places.items():
            link = f"{NETNS_FOLDER}/{NAME}{name}"
            if os.path.islink(link):
                os.unlink(link)
            if not os.path.lexists(link):
                self.state.names.append(link)
                self.save()
                os.symlink(place, link)

    def _say(self, line: str) -> None:
        if self._progress is not None:
            self._progress(line)

    def save(self) -> None:
        self.state.write(self.folder)

    def _log(self, name: str) -> str:
        return f"{self.folder}/log/{name}.log"

    # ---- what is there ------------------------------------------------------------------------

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

    def subnets(self, node: str) -> str:
        """The node's subnets as its flanneld wrote them; empty where it did not."""
        env = self._subnet_env(node)
        return " and ".join(str(subnet) for subnet in env.subnets) if env else ""

    def _subnet_env(self, node: str) -> subnet_env.SubnetEnv | None:
        try:
            with open(self.state.machines[node].path(SUBNET_FILE)) as file:
                return subnet_env.parse(file.read())
        except (OSError, ValueError):
            return None

    def flanneld(self, node: str) -> Service:
        """The flanneld that was started last on a node."""
        return Service(self.machine(node), self.state.flanneld.get(node, 0), self._log(node))

    def log(self, name: str) -> str:
        """What flanneld on a node said, or etcd."""
        with open(self._log(name), errors="replace") as file:
            return file.read()

    def machine(self, name: str) -> Machine:
        """Raises: LabFailed."""
        found = self.state.machines.get(name)
        if found is None:
            places = [*self.state.machines, *self.state.pods]
            raise LabFailed(f'there is no "{name}" in the lab', hint=f"there are {', '.join(places)}")
        return found

    def _netns(self, pod: Pod) -> str:
        """The pod's namespace as seen from outside."""
        return self.machine(pod.node).path(f"/run/netns/{pod.name}")

    # ---- commands in there --------------------------------------------------------------------

    def command(self, where: str, *argv: str) -> list[str]:
        """``argv`` as run on a machine or in a pod, in the folder that we are in, where it is there. Raises: LabFailed."""
        pod = self.state.pods.get(where)
        inside = ["ip", "netns", "exec", pod.name] if pod else []
        return self.machine(pod.node if pod else where).command("sh", "-c", _HERE, "sh", os.getcwd(), *inside, *argv)

    @property
    def environment(self) -> dict[str, str]:
        """What commands in the lab find set: its programs, the network configuration, etcd."""
        environment = self.programs.environment()
        if self.settings.datastore == "etcd":
            environment |= {"ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": f"http://{plan.ETCD_ADDRESS}:2379"}
        return environment

    def run(self, where: str, script: str, *, check: bool = True, stdin: str = "") -> str:
        """Run a shell script (``sh -e``) on a machine or in a pod; answer what it printed. Raises: LabFailed if it fails."""
        argv = self.command(where, "sh", "-ec", script)
        done = subprocess.run(argv, input=stdin, env=self.environment, capture_output=True, text=True, check=False)
        if check and done.returncode != 0:
            raise LabFailed(f"{where}: {script!r} failed with {done.returncode}", (done.stdout + done.stderr).strip())
        return done.stdout

    def ping(self, *, outside: bool = False, seconds: float = 1.0) -> Matrix:
        """Every pod pings every other one, small and full-sized; with ``outside``, also the host beyond the router."""
        asked = {name: self._targets(pod, outside=outside) for name, pod in self.pods.items()}
        commands = {name: ["nsenter", f"--net={self._netns(pod)}", "--"] for name, pod in self.pods.items()}
        return ping(commands, asked, seconds)

    def _targets(self, source: Pod, *, outside: bool) -> list[tuple[str, str, int]]:
        """Name, address and full packet size of what a pod is to reach; the size is that of the narrower end."""
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

    def wait_connected(self, seconds: float = CONNECTED_SECONDS, *, outside: bool = False) -> Matrix:
        """Ping until all is well, or the time is over; the last answer."""
        deadline = time.monotonic() + seconds
        while not (matrix := self.ping(outside=outside, seconds=0.5)).is_complete and time.monotonic() < deadline:
            pass
        return matrix

    # ---- nodes come and go --------------------------------------------------------------------

    def add_node(self) -> str:
        """One more node, with flanneld and pods; its name."""
        node = Node(max((node.number for node in self.state.nodes), default=0) + 1, self.settings.segments)
        self._add_nodes([node])
        return node.name

    def remove_node(self, name: str) -> None:
        """End a node as a power failure does: nothing is taken back, its lease stays."""
        node = self.node(name)
        self.machine(name).kill()
        self.state.nodes.remove(node)
        del self.state.machines[name]
        self.state.flanneld.pop(name, None)
        self.state.pods = {pod.name: pod for pod in self.pods.values() if pod.node != name}
        self.save()

    def node(self, name: str) -> Node:
        found = [node for node in self.state.nodes if node.name == name]
        if not found:
            raise LabFailed(f'there is no node "{name}"', hint=f"nodes: {', '.join(self.nodes)}")
        return found[0]

    def service(self, what: str, node: str = "") -> Service:
        """``flanneld`` on a node, or ``etcd``."""
        if what == "flanneld":
            return self.flanneld(node)
        return Service(self.machine("etcd"), self.state.etcd, self._log("etcd"))


def listed(items: Sequence[str]) -> str:
    """A line about many is about the first ones and the last."""
    return ", ".join(items if len(items) <= SHOWN else [*items[: SHOWN - 2], "...", items[-1]])


def wait(results: Iterable[object]) -> None:
    """Let what a pool does end, and raise what it raised."""
    for _ in results:
        pass
