"""Which sandbox each attachment was made for: what tells GC that an attachment is certainly gone.

A record is written before ADD changes anything and removed when DEL has succeeded:
``/run/cni-py/attachments/<container id>:<ifname>:<network>``, JSON with the namespace's path,
device and inode. ``/run`` is empty after a boot. Everything still works when records are lost:
GC then keeps what it knows nothing of.

A plugin that stands behind another in a chain has records of its own (``/run/cni-py/portmap``): DEL and GC
come to each in turn, and the first of them must not forget what the next has to know.

``/run/cni-py/turns.lock`` holds nothing: each attachment has a byte in it to be locked, see :class:`Turn`.
"""

from __future__ import annotations

import posix

from cni_py import config, files
from cni_py.errors import CniError, IOFailure
from cni_py.journal import RUN_DIR, note
from cni_py.jsontext import encode
from cni_py.plugin_table import PLUGINS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

    from cni_py.spec.call import Call

FOLDER = f"{RUN_DIR}/attachments"
TURNS = f"{RUN_DIR}/turns.lock"
_BYTES = (1 << 61) - 1


class Turn:
    """``with Turn(call):`` — ADD and DEL of one attachment one at a time, whatever processes of this host do them.

    A runtime that lost patience kills its plugin and calls DEL; the agent goes on with the ADD that it had begun,
    and the DEL may come to its successor, or work alone: it has to find all that the ADD makes. What we are
    executed for by a plugin that another call of ours runs is part of that call's turn.

    A byte of one file is locked (an open file description lock): nothing is left behind, and two attachments that
    by chance share a byte only wait for each other. A lock that cannot be had costs no pod its network.
    """

    def __init__(self, call: Call) -> None:
        self._name = f"{call.container_id}:{call.ifname}" if call.verb in ("ADD", "DEL") and not call.is_nested else ""
        self._fd = -1

    def __enter__(self) -> None:
        if not self._name:
            return
        from fcntl import F_OFD_SETLKW, F_WRLCK, fcntl
        from struct import pack

        number = int.from_bytes(self._name.encode(errors="surrogateescape"), "big") % _BYTES
        try:
            files.make_folder(RUN_DIR, 0o700)
            self._fd = posix.open(TURNS, posix.O_RDWR | posix.O_CREAT | posix.O_CLOEXEC | posix.O_NOFOLLOW, 0o600)
            fcntl(self._fd, F_OFD_SETLKW, pack("hhqqi4x", F_WRLCK, 0, number, 1, 0))
        except (OSError, IOFailure):
            pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._fd >= 0:
            posix.close(self._fd)


def _folder(call: Call) -> str:
    """Where the records of the called plugin are."""
    return f"{RUN_DIR}/{call.plugin}" if PLUGINS[call.plugin].record == "own" else FOLDER


def directories() -> list[str]:
    """Every directory that may have records in it."""
    return [FOLDER, *(f"{RUN_DIR}/{plugin}" for plugin, row in PLUGINS.items() if row.record == "own")]


def name_of(container_id: str, ifname: str, network: str) -> str:
    """The attachment's file name, here and in the journal; none of its parts can hold a ``:``."""
    name = f"{container_id}:{ifname}:{network}"
    if len(name.encode(errors="surrogateescape")) <= 250:
        return name
    from zlib import crc32

    return f"{container_id[:120]}:{ifname}:{network[:60]}~{crc32(name.encode()):08x}"


def remember(call: Call, **more: Any) -> bytes | None:
    """Record the sandbox of an ADD, and what else DEL has to know; answers the record as it was before. Raises: IOFailure."""
    for folder in (RUN_DIR, _folder(call)):
        files.make_folder(folder, 0o700)
    record: dict[str, Any] = {
        "containerID": call.container_id,
        "ifname": call.ifname,
        "network": call.network,
        "netns": call.netns,
    }
    try:
        status = posix.fstat(call.sandbox_fd) if call.sandbox_fd >= 0 else posix.stat(call.netns)
        record |= {"dev": status.st_dev, "ino": status.st_ino}
    except OSError:
        pass
    record |= more
    path = f"{_folder(call)}/{name_of(call.container_id, call.ifname, call.network)}"
    try:
        before = files.read(path)
    except (OSError, IOFailure):
        before = None
    files.write(path, encode(record))
    return before


def restore(call: Call, before: bytes | None) -> None:
    """Take :func:`remember` back after an ADD that failed. Raises: IOFailure."""
    if before is None:
        forget(call)
    else:
        files.write(f"{_folder(call)}/{name_of(call.container_id, call.ifname, call.network)}", before)


def forget(call: Call) -> None:
    """Remove the record after DEL. Raises: IOFailure."""
    path = f"{_folder(call)}/{name_of(call.container_id, call.ifname, call.network)}"
    if files.exists(path):
        files.remove(path)


def forget_stale(call: Call) -> None:
    """Remove the records that GC has no more use for. Raises: IOFailure."""
    is_stale = stale_test(call)
    for container_id, ifname in remembered(call.network, _folder(call)):
        if is_stale(container_id, ifname):
            files.remove(f"{_folder(call)}/{name_of(container_id, ifname, call.network)}")


def is_remembered(container_id: str, ifname: str, network: str) -> bool:
    """Whether ADD was called for it since the last boot and DEL has not succeeded."""
    return files.exists(f"{FOLDER}/{name_of(container_id, ifname, network)}")


def stale_test(call: Call) -> Callable[[str, str], bool]:
    """For GC: a test whether an attachment (container id, interface name) of the network has gone.

    With ``cni.dev/valid-attachments`` (libcni: also ``cni.dev/attachments``): all that is not in
    the list. Without a list: only what is recorded with a namespace that is no longer there. The
    interface name is empty for reservations of old plugins, which hold the container id alone:
    they are gone when nothing of their container is valid.
    """
    listed = valid(call)
    if listed is None:
        folder = _folder(call)
        return lambda container_id, ifname: (
            bool(ifname) and _has_lost_its_sandbox(f"{folder}/{name_of(container_id, ifname, call.network)}")
        )
    containers = {container_id for container_id, _ in listed}

    def is_stale(container_id: str, ifname: str) -> bool:
        return (container_id, ifname) not in listed if ifname else container_id not in containers

    return is_stale


def valid(call: Call) -> frozenset[tuple[str, str]] | None:
    """Container id and interface name of what GC must keep, None where the runtime sent no list. Raises: InvalidConfig."""
    raw = call.conf.get("cni.dev/valid-attachments", call.conf.get("cni.dev/attachments"))
    if raw is None:
        return None
    entries = config.parse("ValidAttachments", {"attachments": raw}, "cni.dev/valid-attachments").attachments
    return frozenset((entry.container_id, entry.ifname) for entry in entries)


def others_of_container(call: Call) -> list[dict[str, Any]]:
    """The records of the container's other attachments to the called plugin, the newest first."""
    own, folder = name_of(call.container_id, call.ifname, call.network), _folder(call)
    names = [name for name in _names(folder, call.container_id) if name != own]
    newest_first = sorted(names, key=lambda name: files.changed_at(f"{folder}/{name}"), reverse=True)
    records = [_read(f"{folder}/{name}") for name in newest_first]
    return [record for record in records if record and record.get("containerID") == call.container_id]


def remembered(network: str, folder: str = FOLDER, *, container_id: str = "") -> list[tuple[str, str]]:
    """Container id and interface name of every recorded attachment of a network; of a damaged record its name tells.

    `container_id`: only this container's, without a look into the records of others.
    """
    found = []
    for name in _names(folder, container_id):
        record = _read(f"{folder}/{name}")
        parts = [record.get(key) for key in ("containerID", "ifname", "network")] if record else name.split(":")
        if len(parts) == 3 and parts[2] == network and container_id in ("", parts[0]):
            found.append((str(parts[0]), str(parts[1])))
    return found


def _names(folder: str, container_id: str) -> list[str]:
    """The file names of the records that may be this container's (:func:`name_of` keeps 120 characters at least)."""
    return [name for name in files.list_folder(folder) if name.startswith(container_id[:120])]


def _has_lost_its_sandbox(path: str) -> bool:
    record = _read(path)
    shape = {"netns": str, "dev": int, "ino": int}
    if not record or not all(isinstance(record.get(key), kind) for key, kind in shape.items()):
        return False
    try:
        status = posix.stat(record["netns"])
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return (status.st_dev, status.st_ino) != (record["dev"], record["ino"])


def _read(path: str) -> dict[str, Any] | None:
    try:
        return config.decode(files.read(path), path)
    except FileNotFoundError:
        return None
    except (CniError, OSError) as error:
        note(f"ignored a damaged record: {error}")
        return None
