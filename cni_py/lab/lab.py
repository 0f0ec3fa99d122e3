"""The lab: created, opened, removed. What it consists of is created by build.py, and used through site.py."""

from __future__ import annotations

import os
import tempfile
import time
from typing import TYPE_CHECKING, Any

from cni_py.lab import machine, plan
from cni_py.lab.build import Builder
from cni_py.lab.machine import Keeper
from cni_py.lab.plan import Node
from cni_py.lab.programs import LabFailed, check
from cni_py.lab.site import Site
from cni_py.lab.state import CONTENT, State, take_down, write_keeper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

DIRECTORY = "/run/cni-py/lab"
NETNS_DIRECTORY, NAME = "/run/netns", "cni-lab-"


class Lab(Site):
    """Nodes with flanneld and pods. A context manager that calls :meth:`up` and :meth:`down`.

    Args:
        backend: ``Backend.Type``, and ``backend_options`` its other keys (``{"DirectRouting": True}``).
        ipv6: dual stack; with ``ipv4=False`` IPv6 alone.
        datastore: ``file`` or ``etcd``.
        segments: 2 puts every other node behind the router.
        pods: on each node.
        config: the whole network configuration, instead of what the other arguments make.
        numbered: node N leases the Nth subnet of the network (10.244.1.0/24 …) instead of one at random.
        flanneld: another flanneld than this installation's; ``flanneld_options``: added to its command line.
        prefix: use another installation.
        directory: for state and logs; empty: a new temporary one.
        progress: called with a line for each step.
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
        numbered: bool = False,
        prefix: str = "",
        directory: str = "",
        progress: Callable[[str], None] = lambda _: None,
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
            numbered=numbered,
        )
        super().__init__(State(settings, os.path.abspath(prefix) if prefix else ""), directory)
        self._keeper: Keeper | None = None
        self._progress = progress

    @classmethod
    def open(cls, directory: str = DIRECTORY) -> Site:
        """The lab in this directory. Raises: LabFailed if there is none, or it has ended."""
        state = State.read(directory)
        if state is None:
            raise LabFailed("no lab is running", hint=machine.hint_inside() or "cni-py lab up")
        if not state.is_alive:
            hint = "cni-py lab down removes what is left of it, cni-py lab up creates a new one"
            raise LabFailed("the lab has ended: its first process was killed, and everything in it with it", hint=hint)
        return Site(state, directory)

    def __enter__(self) -> Lab:
        self.up()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.down()

    def up(self) -> None:
        """Create everything; a failure leaves nothing. Raises: LabFailed."""
        check(self.programs, flanneld=self.flanneld_program, with_etcd=self.settings.datastore == "etcd")
        self._remove_former()
        self.state.since = time.time()
        self._create_directory()
        try:
            self.state.directories = machine.make_mount_points()
            self.save()
            self._keeper = Keeper()
            self.state.keeper = self._keeper.machine
            write_keeper(self.directory, self.state.keeper)
            builder = Builder(self, self._progress)
            builder.create_machines()
            builder.start_datastore()
            builder.add_nodes([Node(number, self.settings.segments) for number in range(1, self.settings.nodes + 1)])
            if self.directory == DIRECTORY:
                self._create_names()
            self.state.complete = True
            self.save()
        except BaseException:
            self.down()
            raise

    def stay(self) -> None:
        """Keep the lab when this process ends."""
        if self._keeper is not None:
            self._keeper.stay()

    def down(self) -> None:
        """End and remove everything, also what kills have left. Can be repeated. Raises: LabFailed."""
        try:
            take_down(self.directory)
        finally:
            if self._keeper is not None:
                self._keeper.close()

    def _remove_former(self) -> None:
        """Remove what is left of a lab in the same directory. Raises: LabFailed if one is running."""
        if not self.directory or (former := State.read(self.directory)) is None:
            return
        if former.is_alive:
            raise LabFailed(f"a lab is running already, in {self.directory}", hint="cni-py lab status; cni-py lab down")
        take_down(self.directory)
        self._progress("removed what was left of a lab that had ended")

    def _create_directory(self) -> None:
        """Raises: LabFailed."""
        if self.directory:
            os.makedirs(self.directory, 0o700, exist_ok=True)
        else:
            self.directory = tempfile.mkdtemp(prefix="cni-lab-")
        if foreign := set(os.listdir(self.directory)) - set(CONTENT):
            details = f"it contains {min(foreign)}"
            raise LabFailed(f'"{self.directory}" is not a lab\'s directory', details, "name an empty or a new one")
        self.save()  # first of all: take_down() removes only directories with a state file
        for name in ("stage", "log", "shared"):
            os.makedirs(f"{self.directory}/{name}", exist_ok=True)

    def _create_names(self) -> None:
        """Names for ``ip netns``: links into /proc, which keep nothing alive."""
        os.makedirs(NETNS_DIRECTORY, exist_ok=True)
        places = {name: f"/proc/{one.pid}/ns/net" for name, one in self.state.machines.items()}
        places |= {pod.name: self.netns_path(pod) for pod in self.pods.values()}
        for name, place in places.items():
            link = f"{NETNS_DIRECTORY}/{NAME}{name}"
            if os.path.islink(link):
                os.unlink(link)
            if not os.path.lexists(link):
                self.state.names.append(link)
                self.save()
                os.symlink(place, link)

    # ---- changes to a running lab -------------------------------------------------------------

    def add_node(self) -> str:
        """Add a node with flanneld and pods. Returns: its name."""
        node = Node(max((node.number for node in self.state.nodes), default=0) + 1, self.settings.segments)
        Builder(self, self._progress).add_nodes([node])
        return node.name

    def remove_node(self, name: str) -> None:
        """End a node like a power failure: nothing is cleaned up, its lease remains."""
        node = self.node(name)
        self.machine(name).kill()
        self.state.nodes.remove(node)
        del self.state.machines[name]
        self.state.flanneld.pop(name, None)
        self.state.pods = {pod.name: pod for pod in self.pods.values() if pod.node != name}
        self.save()
