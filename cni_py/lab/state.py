"""What a lab is made of, kept in its folder as ``state.json``: written whole, before and after each step."""

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
"""Of the lab's folder; nothing else in there is ours."""
FORM = 1
"""Of the file: another one is not understood."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A network namespace on a node; ``addresses`` as the plugins gave them, without prefix lengths."""

    name: str
    node: str
    addresses: tuple[str, ...]


@dataclass(slots=True)
class State:
    """All of it.

    ``broken``: by "route node1", each entry's key and the command that would put it back. ``folders``: made on the real
    machine, to be removed again. ``names``: likewise, in ``/run/netns``.
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
    folders: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    @property
    def is_alive(self) -> bool:
        return self.keeper is not None and self.keeper.is_alive

    def write(self, folder: str) -> None:
        path = f"{folder}/{STATE_FILE}"
        with open(f"{path}.new", "w") as file:
            json.dump({"form": FORM} | asdict(self), file, indent=1)
        os.replace(f"{path}.new", path)

    @classmethod
    def read(cls, folder: str) -> State | None:
        """None where there is no lab. Raises: LabFailed where its file cannot be understood."""
        path = f"{folder}/{STATE_FILE}"
        try:
            with open(path) as file:
                raw: dict[str, Any] = json.load(file)
            if raw.pop("form") != FORM:
                raise LabFailed(f'"{path}" is of another version of cni-py', hint="take the lab down with that one")
            return _from_json(raw)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LabFailed(f'"{path}" is damaged', str(error), "cni-py lab down removes what is there") from error


def write_keeper(folder: str, keeper: Machine) -> None:
    """Once more the one number that ``down`` cannot do without."""
    with open(f"{folder}/{KEEPER_FILE}", "w") as file:
        file.write(f"{keeper.pid} {keeper.started}\n")


def read_keeper(folder: str) -> Machine | None:
    try:
        with open(f"{folder}/{KEEPER_FILE}") as file:
            pid, started = file.read().split()
        return Machine("switch", int(pid), int(started))
    except (OSError, ValueError):
        return None


def take_down(folder: str) -> bool:
    """End the lab in this folder and remove what it left; whether there was one. Raises: LabFailed."""
    if not folder or not os.path.exists(f"{folder}/{STATE_FILE}"):
        return False
    try:
        state = State.read(folder)
    except LabFailed:  # damaged by hand; the keeper has a file of its own for that
        state = None
    keeper = state.keeper if state is not None else read_keeper(folder)
    if keeper is not None:
        keeper.kill()
    if state is not None:
        for link in state.names:
            if os.path.islink(link):
                os.unlink(link)
        remove_mount_points(state.folders)
    for name in CONTENT:  # the state is last: until then this can be done again
        path = f"{folder}/{name}"
        if os.path.isdir(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)
    with suppress(OSError):  # something of somebody else is in it
        os.rmdir(folder)
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
