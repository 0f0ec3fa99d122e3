"""The state of a lab, in its directory as ``state.json``: written as a whole, before and after each step."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cni_py.lab.machine import Machine, remove_mount_points
from cni_py.lab.plan import Node, Settings
from cni_py.lab.programs import LabFailed

STATE_FILE, KEEPER_FILE = "state.json", "keeper"
CONTENT = ("stage", "notify", "shared", "log", f"{STATE_FILE}.new", KEEPER_FILE, STATE_FILE)
"""Files and directories in the lab's directory; nothing else in there is ours."""
FORM = 2
"""Version of the file's format."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A network namespace on a node; ``addresses`` from the plugins' result, without prefix lengths."""

    name: str
    node: str
    addresses: tuple[str, ...]


@dataclass(slots=True)
class State:
    """The whole lab.

    Attributes:
        broken: by "route node1", each entry's key and the command that restores it.
        directories: created on the real machine, to be removed again; ``names``: likewise, in ``/run/netns``.
    """

    settings: Settings
    prefix: str = ""
    since: float = 0.0
    complete: bool = False
    keeper: Machine | None = None
    machines: dict[str, Machine] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    pods: dict[str, Pod] = field(default_factory=dict)
    flanneld: dict[str, int] = field(default_factory=dict)
    etcd: int = 0
    broken: dict[str, list[list[str]]] = field(default_factory=dict)
    directories: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    @property
    def is_alive(self) -> bool:
        return self.keeper is not None and self.keeper.is_alive

    def write(self, directory: str) -> None:
        path = f"{directory}/{STATE_FILE}"
        with open(f"{path}.new", "w") as file:
            json.dump({"form": FORM} | asdict(self), file, indent=1)
        os.replace(f"{path}.new", path)

    @classmethod
    def read(cls, directory: str) -> State | None:
        """Returns: None if there is no lab. Raises: LabFailed if its file is damaged."""
        path = f"{directory}/{STATE_FILE}"
        try:
            with open(path) as file:
                raw: dict[str, Any] = json.load(file)
            if raw.pop("form") != FORM:
                raise LabFailed(f'"{path}" was written by another version of cni-py', hint="remove the lab with that one")
            return _from_json(raw)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LabFailed(f'"{path}" is damaged', str(error), "cni-py lab down removes the lab") from error


def write_keeper(directory: str, keeper: Machine) -> None:
    """Write the keeper's process id to a file of its own: ``down`` needs it even if the state file is damaged."""
    with open(f"{directory}/{KEEPER_FILE}", "w") as file:
        file.write(f"{keeper.pid} {keeper.started}\n")


def read_keeper(directory: str) -> Machine | None:
    try:
        with open(f"{directory}/{KEEPER_FILE}") as file:
            pid, started = file.read().split()
        return Machine("switch", int(pid), int(started))
    except (OSError, ValueError):
        return None


def take_down(directory: str) -> bool:
    """End the lab in this directory and remove everything. Returns: whether there was one. Raises: LabFailed."""
    if not directory or not os.path.exists(f"{directory}/{STATE_FILE}"):
        return False
    try:
        state = State.read(directory)
    except LabFailed:
        state = None
    keeper = state.keeper if state is not None else read_keeper(directory)
    if keeper is not None:
        keeper.kill()
    if state is not None:
        for link in state.names:
            if os.path.islink(link):
                os.unlink(link)
        remove_mount_points(state.directories)
    for name in CONTENT:  # the state file last: until then, a take_down() that was killed can be repeated
        path = f"{directory}/{name}"
        if os.path.isdir(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)
    with suppress(OSError):  # it holds files that are not ours
        os.rmdir(directory)
    return True


def _from_json(raw: dict[str, Any]) -> State:
    settings = Settings(**raw["settings"] | {"flanneld_options": tuple(raw["settings"]["flanneld_options"])})
    state = State(**raw | {"settings": settings})
    return replace(
        state,
        keeper=Machine(**raw["keeper"]) if raw["keeper"] else None,
        machines={name: Machine(**machine) for name, machine in raw["machines"].items()},
        nodes=[Node(**node) for node in raw["nodes"]],
        pods={name: Pod(**pod | {"addresses": tuple(pod["addresses"])}) for name, pod in raw["pods"].items()},
    )
