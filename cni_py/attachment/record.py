"""The record of an attachment: the sandbox it was made for, by which GC knows that it no longer exists.

Owns: ``/run/cni-py/attachments/<container id>:<ifname>:<network>``, JSON with the path of the namespace, its device and
inode, and the pod's name from CNI_ARGS. It is written before ADD changes anything and deleted when DEL has succeeded.
``/run`` is empty after a boot, and everything works when records are lost, or cannot be written: GC then keeps what it
has no record of.

Own records: a meta plugin keeps its own (``/run/cni-py/portmap/…``). The runtime calls DEL and GC for one plugin of the
chain after the other, and the first of them must not delete what the next one needs. Which plugin has which: the table
of plugins.
"""

from __future__ import annotations

import posix

from cni_py import config, files
from cni_py.errors import CniError, IOFailure
from cni_py.journal import RUN_DIR, go_on_without, note
from cni_py.jsontext import encode
from cni_py.plugin_table import PLUGINS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from cni_py.kernel.link import Link
    from cni_py.packetfilter.ownership import Owner
    from cni_py.spec.call import Call

DIRECTORY = f"{RUN_DIR}/attachments"
MARK = "cni:"
"""Prefix of the mark of host ends (attachment/veth.py)."""
BOOT_ID, KERNEL_BOOT_ID = f"{RUN_DIR}/boot-id", "/proc/sys/kernel/random/boot_id"
END_SECONDS = 2.0
_RETURNED = "returned"
_POD_ARGS, _MAX_ARG = ("K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID"), 253
"""Keys of CNI_ARGS that the record keeps, and the length of a name in Kubernetes."""
_is_known_boot = False
_rules_lost = False


def _directory(call: Call) -> str:
    return f"{RUN_DIR}/{call.plugin}" if PLUGINS[call.plugin].record == "own" else DIRECTORY


def directories() -> list[str]:
    """Every directory that may hold records."""
    return [DIRECTORY, *(f"{RUN_DIR}/{plugin}" for plugin, row in PLUGINS.items() if row.record == "own")]


def name_of(container_id: str, ifname: str, network: str) -> str:
    """File name of the attachment, for its record and its journal; none of the parts can hold a ``:``."""
    name = f"{container_id}:{ifname}:{network}"
    if len(name.encode(errors="surrogateescape")) <= 250:
        return name
    from zlib import crc32

    return f"{container_id[:120]}:{ifname}:{network[:60]}~{crc32(name.encode()):08x}"


def mark_of(container_id: str, ifname: str, network: str) -> str:
    """The attachment in the mark of its host end, without prefix; the kernel takes at most 127 bytes of an alternative name."""
    name = f"{container_id}:{ifname}:{network}"
    if len(name.encode(errors="surrogateescape")) <= 123:
        return name
    from zlib import crc32

    return f"{container_id[:72]}:{ifname}:{network[:25]}~{crc32(name.encode(errors='surrogateescape')):08x}"


def mark_on(link: Link) -> str:
    """The mark of a host end; "" if it has none."""
    return next((name for name in (*link.altnames, link.alias) if name.startswith(MARK)), "")


def owner_of(call: Call) -> Owner:
    """The attachment as the packet filter's comments and chains name it."""
    from cni_py.packetfilter.ownership import Owner

    return Owner(call.container_id, call.ifname, call.network)


# ---- one attachment ---------------------------------------------------------------------------


def remember(call: Call, **more: Any) -> bytes | None:
    """Write the record of an ADD, which goes on without one if it cannot be written.

    Args:
        more: whatever else DEL needs to know; :func:`read` returns it.

    Returns: the record before this one, for :func:`restore`.
    """
    record: dict[str, Any] = {
        "containerID": call.container_id,
        "ifname": call.ifname,
        "network": call.network,
        "netns": call.netns,
    }
    pod = _pod_args(call)
    if pod:
        record["args"] = pod
    if call.is_return:
        record[_RETURNED] = True  # for nested plugins: they find this record instead of the one before
    try:
        status = posix.fstat(call.sandbox_fd) if call.sandbox_fd >= 0 else posix.stat(call.netns)
        record |= {"dev": status.st_dev, "ino": status.st_ino, "ctime": status.st_ctime_ns}
    except OSError:
        pass
    record |= more
    path = _path(call)
    try:
        before = files.read(path)
    except (OSError, IOFailure):
        before = None
    _write(path, encode(record))
    return before


def _pod_args(call: Call) -> dict[str, str]:
    return {pair[0]: pair[1][:_MAX_ARG] for pair in call.args if len(pair) == 2 and pair[0] in _POD_ARGS}


def pod_of(call: Call) -> str:
    """``namespace/name`` of the pod, by which people know it; "" if no runtime of Kubernetes called."""
    pod = _pod_args(call) if call.args else {}
    return "/".join([pod[key] for key in _POD_ARGS[:2] if pod.get(key)])


def amend(call: Call, **more: Any) -> None:
    """Add to the record of an ADD what is known only now; without a record nothing is added."""
    path = _path(call)
    record = _read(path)
    if record is not None:
        _write(path, encode(record | more))


def is_return(call: Call) -> bool:
    """True if a container comes back with its id: the sandbox of its ADD before no longer exists. Before :func:`remember`.

    Its runtime was killed, and no DEL was called. What the attachment had is stale, and can be used again.
    """
    if not files.exists(_path(call)):
        return False
    before = read(call)
    if call.is_nested and before.get(_RETURNED) is True:
        return True
    return _has_ended(before) and not _has_host_end(call)


def is_of_live_sandbox(record: dict[str, Any]) -> bool:
    """Return whether the record names a sandbox, and it still exists."""
    return _is_complete(record) and not _has_ended(record)


def say_rules_lost() -> None:
    """Let the caller of this ADD know that another process has deleted the rules that all attachments share."""
    global _rules_lost
    _rules_lost = True


def may_have_lost_rules(call: Call) -> bool:
    """Return whether other attachments may have lost rules: after a GC, and after an ADD that found the shared ones missing."""
    global _rules_lost
    lost, _rules_lost = _rules_lost, False
    if call.verb == "GC":
        return PLUGINS[call.plugin].kind != "ipam"
    return lost and any(len(names_in(directory)) > 1 for directory in directories())


def _has_ended(record: dict[str, Any]) -> bool:
    """True if the recorded sandbox no longer exists, though another one may have its path, and its inode."""
    if not _is_complete(record):
        return False
    try:
        status = posix.stat(record["netns"])
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    if (status.st_dev, status.st_ino) != (record["dev"], record["ino"]):
        return True
    # The kernel gives the inode of a deleted namespace to the next one; the file of /proc may be made again for the same one.
    return not record["netns"].startswith("/proc/") and record.get("ctime", status.st_ctime_ns) != status.st_ctime_ns


def _has_host_end(call: Call) -> bool:
    """True if the veth of before still leads into a namespace, which then lives without its path."""
    from time import monotonic, sleep

    from cni_py.kernel.link import list_links
    from cni_py.netlink.socket import open_host

    mark = MARK + mark_of(call.container_id, call.ifname, call.network)
    deadline = monotonic() + END_SECONDS
    with open_host() as host:
        # the kernel deletes a namespace, and with it the veth, a moment after its last user
        while found := any(link.nsid is not None for link in list_links(host, mark)):
            if monotonic() > deadline:
                break
            sleep(0.02)
    return found


def restore(call: Call, before: bytes | None) -> None:
    """Undo :func:`remember` after a failed ADD."""
    if before is None:
        forget(call)
    else:
        _write(_path(call), before)


def read(call: Call) -> dict[str, Any]:
    """The record of the called attachment, empty if there is none or it is damaged."""
    return _read(_path(call)) or {}


def forget(call: Call) -> None:
    """Delete the record after DEL."""
    if files.exists(_path(call)):
        _remove(_path(call))


def is_remembered(container_id: str, ifname: str, network: str) -> bool:
    """True if ADD was called since the last boot and DEL has not succeeded."""
    return files.exists(f"{DIRECTORY}/{name_of(container_id, ifname, network)}")


def _path(call: Call) -> str:
    return f"{_directory(call)}/{name_of(call.container_id, call.ifname, call.network)}"


# ---- all attachments of a network or of a container -------------------------------------------


def forget_stale(call: Call) -> None:
    """Delete the records that :func:`stale_test` calls stale."""
    is_stale, directory = stale_test(call), _directory(call)
    for container_id, ifname in remembered(call.network, directory):
        if is_stale(container_id, ifname):
            _remove(f"{directory}/{name_of(container_id, ifname, call.network)}")


def stale_test(call: Call) -> Callable[[str, str], bool]:
    """Return a test for GC whether an attachment (container id, interface name) of the network no longer exists.

    With ``cni.dev/valid-attachments`` (libcni: also ``cni.dev/attachments``), everything that is not in the list is
    stale; without a list, only an attachment whose recorded namespace no longer exists. Reservations of old plugins
    have no interface name: they are stale when no attachment of their container is valid.
    """
    listed = valid(call)
    if listed is None:
        directory = _directory(call)
        return lambda container_id, ifname: (
            bool(ifname) and _has_lost_its_sandbox(f"{directory}/{name_of(container_id, ifname, call.network)}")
        )
    containers = {container_id for container_id, _ in listed}

    def is_stale(container_id: str, ifname: str) -> bool:
        return (container_id, ifname) not in listed if ifname else container_id not in containers

    return is_stale


def stale_calls(call: Call) -> list[Call]:
    """Return a DEL for each stale attachment of the network, for GC; without namespace if the recorded one no longer exists."""
    is_stale, directory = stale_test(call), _directory(call)
    found = []
    for container_id, ifname in remembered(call.network, directory):
        path = f"{directory}/{name_of(container_id, ifname, call.network)}"
        if is_stale(container_id, ifname):
            netns = _live_sandbox(_read(path))
            found.append(call.replace(verb="DEL", container_id=container_id, ifname=ifname, netns=netns, sandbox_fd=-1))
    return found


def with_sandbox(call: Call) -> Call:
    """Return a DEL without CNI_NETNS with the recorded namespace, if that still exists; any other call as it is."""
    return call if call.netns else call.replace(netns=_live_sandbox(read(call)), sandbox_fd=-1)


def is_anothers_interface(call: Call) -> bool:
    """Return whether CNI_IFNAME is another network's: one that has an older record of this interface in this sandbox.

    A network that was refused the name has no record, or a younger one if its ADD was killed.
    """
    own, directory = _path(call), _directory(call)
    names = [f"{directory}/{name}" for name in names_in(directory, call.container_id)]
    others = [path for path in names if path != own and _is_of_interface(_read(path), call)]
    age = files.changed_at(own) if files.exists(own) else None
    return any(age is None or files.changed_at(path) < age for path in others)


def _is_of_interface(record: dict[str, Any] | None, call: Call) -> bool:
    wanted = (call.container_id, call.ifname, call.netns)
    return record is not None and tuple(record.get(key) for key in ("containerID", "ifname", "netns")) == wanted


def valid(call: Call) -> frozenset[tuple[str, str]] | None:
    """Container id and interface name of what GC must keep, None if the runtime sent no list. Raises: InvalidConfig."""
    raw = call.conf.get("cni.dev/valid-attachments", call.conf.get("cni.dev/attachments"))
    if raw is None:
        return None
    entries = config.parse("ValidAttachments", {"attachments": raw}, "cni.dev/valid-attachments").attachments
    return frozenset((entry.container_id, entry.ifname) for entry in entries)


def others_of_container(call: Call) -> list[dict[str, Any]]:
    """The records of the container's other attachments to the called plugin, newest first."""
    own, directory = name_of(call.container_id, call.ifname, call.network), _directory(call)
    names = [name for name in names_in(directory, call.container_id) if name != own]
    newest_first = sorted(names, key=lambda name: files.changed_at(f"{directory}/{name}"), reverse=True)
    records = [_read(f"{directory}/{name}") for name in newest_first]
    return [record for record in records if record and record.get("containerID") == call.container_id]


def texts_of_others(call: Call) -> list[bytes]:
    """The records of all other attachments that the called plugin has recorded, of any network, undecoded."""
    own, directory = name_of(call.container_id, call.ifname, call.network), _directory(call)
    texts = []
    for name in names_in(directory):
        if name != own:
            try:
                texts.append(files.read(f"{directory}/{name}"))
            except (OSError, IOFailure):
                pass
    return texts


def remembered(network: str, directory: str = DIRECTORY, *, container_id: str = "") -> list[tuple[str, str]]:
    """Container id and interface name of every recorded attachment of a network; of a damaged record, as in its name.

    Args:
        container_id: only those of this container; other records are not read.
    """
    found = []
    for name in names_in(directory, container_id):
        record = _read(f"{directory}/{name}")
        parts = [record.get(key) for key in ("containerID", "ifname", "network")] if record else name.split(":")
        if len(parts) == 3 and parts[2] == network and container_id in ("", parts[0]):
            found.append((str(parts[0]), str(parts[1])))
    return found


def remembered_by(call: Call) -> list[tuple[str, str]]:
    """Container id and interface name of every attachment of the network that the called plugin has recorded."""
    return remembered(call.network, _directory(call))


def names_in(directory: str, container_id: str = "") -> list[str]:
    """File names of the records that may be this container's (:func:`name_of` keeps at least 120 characters)."""
    try:
        names = files.list_directory(directory)
        _check_own(directory)
    except IOFailure as error:  # a file in its place
        go_on_without(error)
        return []
    return [name for name in names if name.startswith(container_id[:120])]


def _live_sandbox(record: dict[str, Any] | None) -> str:
    """Return the recorded path if it leads to the recorded namespace, else ""."""
    return str(record["netns"]) if record and _is_complete(record) and not _has_ended(record) else ""


def _has_lost_its_sandbox(path: str) -> bool:
    """True if the recorded path leads to no namespace, or to another one."""
    record = _read(path)
    if not record or not _is_complete(record):
        return False
    try:
        status = posix.stat(record["netns"])
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return (status.st_dev, status.st_ino) != (record["dev"], record["ino"])


def _is_complete(record: dict[str, Any]) -> bool:
    shape = {"netns": str, "dev": int, "ino": int}
    return all(isinstance(record.get(key), kind) for key, kind in shape.items())


def _write(path: str, content: bytes) -> None:
    try:
        for directory in (RUN_DIR, path.rpartition("/")[0]):
            files.own_directory(directory)
        files.write(path, content)
    except IOFailure as error:
        go_on_without(error)


def _remove(path: str) -> None:
    try:
        _check_own(path.rpartition("/")[0])
        files.remove(path)
    except IOFailure as error:
        go_on_without(error)


def _check_own(directory: str) -> None:
    """Check that no other user can plant a record. Raises: IOFailure."""
    for checked in (RUN_DIR, directory):
        files.check_own_directory(checked)


def _read(path: str) -> dict[str, Any] | None:
    try:
        _check_own(path.rpartition("/")[0])
        return config.decode(files.read(path), path)
    except FileNotFoundError:
        return None
    except (CniError, OSError) as error:
        note(f"ignored a damaged record: {error}")
        return None


# ---- the first call of a boot -----------------------------------------------------------------


def is_first_of_boot(call: Call) -> bool:
    """True before the first ADD or GC with a shared record since the host booted: the caller then sweeps (sweep/sweep.py).

    It is here because every call loads this module anyway: nothing of sweep/ is imported to find out.
    """
    return call.verb in ("ADD", "GC") and PLUGINS[call.plugin].record == "shared" and not is_known_boot()


def is_known_boot() -> bool:
    """True if a call of this boot has swept."""
    global _is_known_boot
    if not _is_known_boot:  # no process lives in two boots: "yes" is final
        try:
            _is_known_boot = files.read(BOOT_ID) == files.read(KERNEL_BOOT_ID)
        except (OSError, IOFailure):
            pass
    return _is_known_boot
