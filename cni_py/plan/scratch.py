"""Run a function in a copy of the host that is discarded afterwards: namespaces of networks, mounts and processes.

    outcome = run(originals, function, directories=[…], files=[…])

How it works. A child becomes process 1 of a new PID namespace, whose end is the end of all that runs in it; the kernel kills it
when its parent ends, whatever way. It makes the mounts read-only and state directories copies (``state_files.py``), creates
every network namespace again (``copying.py``) with its name, and calls the function, whose value it pickles into a pipe. A
namespace that has no name, or is known by a process, gets a process of the same number that is in it.

What the function can reach is the copy: namespaces and sockets of the host have no name in there.
"""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from cni_py import program
from cni_py.errors import CniError, KernelRefused, reason_of
from cni_py.kernel.netns import CLONE_NEWNET, setns
from cni_py.plan import copying, state_files, system
from cni_py.plan.system import CLONE_NEWIPC, CLONE_NEWNS, CLONE_NEWPID, MS_BIND, end_with_parent, unshare

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from cni_py.packetfilter.libnftables import Nft
    from cni_py.plan.copying import Copies
    from cni_py.plan.namespaces import Namespace

__all__ = ["PacketFilter", "Scratch", "run"]

_SAVED_TABLES = ("filter", "nat", "mangle", "raw", "security")
"""Tables of iptables, which nft may be unable to read back."""

_STATELESS = 2  # NFT_CTX_OUTPUT_STATELESS: without counts
_RESTORED_BY = {"ip": "iptables-nft-restore", "ip6": "ip6tables-nft-restore"}
_BASE_CHAINS = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")


@dataclass(frozen=True, slots=True)
class PacketFilter:
    """The rules of the host: a text for ``nft -f`` for each table, and for each ``iptables-restore`` one."""

    tables: tuple[tuple[str, str], ...] = ()
    saved: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Scratch:
    """The copy, as the function sees it.

    Attributes:
        stand_ins: links of another kind than the originals, by namespace and name: the original kind.
        missing: what could not be copied.
    """

    stand_ins: dict[tuple[str, str], str]
    missing: tuple[str, ...]


def run(
    originals: Sequence[Namespace],
    packet_filter: PacketFilter,
    function: Callable[[Scratch], Any],
    directories: Iterable[str],
    files: Iterable[str],
) -> Any:
    """Return the value of the function. Raises: its error; KernelRefused if there can be no copy."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        unshare(CLONE_NEWPID)
        try:
            child = os.fork()
            if child == 0:
                os.close(read_fd)
                _be_process_one(write_fd, lambda: _in_copy(originals, packet_filter, function, directories, files))
        finally:
            setns(own, CLONE_NEWPID)
    except OSError as error:
        raise impossible(error) from error
    finally:
        os.close(own)
        os.close(write_fd)
    try:
        with open(read_fd, "rb") as pipe:
            data = pipe.read()
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if not data:
        raise KernelRefused("no plan could be made", "the process in the copy of the host was killed")
    is_value, value = pickle.loads(data)  # noqa: S301 — our own child wrote it
    if not is_value:
        raise value
    return value


def impossible(error: OSError) -> KernelRefused:
    """Return the error of a copy that cannot be made."""
    hint = "" if os.geteuid() else "in a container it needs CAP_SYS_ADMIN and mounts of its own"
    return KernelRefused("no copy of the host can be made", reason_of(error), hint, errno=error.errno or 0)


def _be_process_one(write_fd: int, function: Callable[[], Any]) -> NoReturn:
    """Call the function, write its value or error, and end without what the parent would do at its end."""
    try:
        end_with_parent(signal.SIGKILL)
        try:
            outcome = (True, function())
        except CniError as error:
            outcome = (False, error)
        except OSError as error:
            outcome = (False, impossible(error))
        with open(write_fd, "wb") as pipe:
            _Pickler(pipe).dump(outcome)
    except BaseException:  # noqa: BLE001 — a bug: it must not run what the parent has registered for its end
        import traceback

        traceback.print_exc()
    finally:
        os._exit(0)


class _Pickler(pickle.Pickler):
    """Pickles errors by their attributes: their constructors take other arguments than an exception has."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, CniError):
            return _as_it_was, (type(value), value.args, vars(value))
        return NotImplemented


def _as_it_was(kind: type[CniError], args: tuple[Any, ...], attributes: dict[str, Any]) -> CniError:
    error = kind.__new__(kind)
    error.args = args
    vars(error).update(attributes)
    return error


def _in_copy(
    originals: Sequence[Namespace],
    packet_filter: PacketFilter,
    function: Callable[[Scratch], Any],
    directories: Iterable[str],
    files: Iterable[str],
) -> Any:
    unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC)
    state_files.mount_proc()
    numbers = _open_numbers()
    state_files.isolate(directories, files)
    copies = copying.copy(originals)
    identities = {}
    for one in copies.spaces[1:]:
        _give_name(one.netns.fd, one.of, numbers)
        status = os.fstat(one.netns.fd)
        identities[one.of.identity] = status.st_dev, status.st_ino
    if numbers >= 0:
        os.close(numbers)
    state_files.adopt_namespaces(identities)
    missing = list(_fill_packet_filter(packet_filter))
    _close(copies)
    return function(Scratch(copies.stand_ins, tuple(missing)))


def _give_name(fd: int, of: Namespace, numbers: int) -> None:
    """Let the paths of a namespace lead to its copy. Raises: OSError."""
    for path in of.paths:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if not os.path.lexists(path):
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0))
        system.mount(f"/proc/self/fd/{fd}", path, "", MS_BIND)
    for pid in of.pids if numbers >= 0 or of.is_sandbox else ():
        _stay_in(fd, pid, numbers)


def _open_numbers() -> int:
    """Open the file by which the next process gets its number, before it can only be read; -1: this kernel has none."""
    try:
        return os.open("/proc/sys/kernel/ns_last_pid", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _stay_in(fd: int, pid: int, numbers: int) -> None:
    """Create a process of this number in the namespace, which waits for its end. Raises: OSError."""
    if numbers < 0:
        raise FileNotFoundError(2, "this kernel cannot give a process a number (CONFIG_CHECKPOINT_RESTORE)", f"/proc/{pid}")
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    os.pwrite(numbers, str(pid - 1).encode(), 0)
    child = os.fork()
    if child == 0:
        try:
            setns(fd, CLONE_NEWNET)
            os.write(ready_write, b"1")
            os.closerange(0, 1 << 10)
            while True:
                signal.pause()
        finally:
            os._exit(1)
    os.close(ready_write)
    is_ready = os.read(ready_read, 1) == b"1"
    os.close(ready_read)
    if child != pid or not is_ready:
        raise OSError(17, f"process {pid} could not be created again")


def _close(copies: Copies) -> None:
    """Close what leads to the namespaces, so that a plugin that deletes one does as on the host."""
    for one in copies.spaces:
        one.netlink.close()
        os.close(one.netns.fd)


# ---- packet filter -----------------------------------------------------------------------------


def read_packet_filter() -> PacketFilter:
    """Read the rules of the namespace that the thread is in. Raises: CniError."""
    from cni_py.packetfilter.libnftables import Nft

    saved = [] if _names("/proc/self/net/ip_tables_names") + _names("/proc/self/net/ip6_tables_names") == [] else ["-legacy"]
    try:
        nft = Nft()
    except CniError:
        return PacketFilter((), tuple(_saved(saved)))
    try:
        text = (nft.read("list ruleset", _STATELESS) or b"").decode(errors="surrogateescape")
    except CniError:
        text = ""
    finally:
        nft.close()
    tables = tuple(_tables_in(text))
    if any(
        family in _RESTORED_BY and table in _SAVED_TABLES for family, _, table in (name.partition(" ") for name, _ in tables)
    ):
        saved.append("-nft")
    return PacketFilter(tables, tuple(_saved(saved)))


def _tables_in(ruleset: str) -> Iterator[tuple[str, str]]:
    """Yield family and name, and the text, of each table of a ruleset. Pure."""
    lines = [line for line in ruleset.splitlines() if not line.startswith("#")]  # a warning that iptables manages a table
    for block in "\n".join(["", *lines]).split("\ntable ")[1:]:
        yield " ".join(block.split(" ", 2)[:2]), f"table {block}\n"


def _names(path: str) -> list[str]:
    try:
        with open(path) as file:
            return file.read().split()
    except OSError:
        return []


def _delete_new_chains(nft: Nft, name: str, text: str) -> None:
    """Delete the base chains that iptables-restore has made, and the table of the host does not have."""
    for chain in _BASE_CHAINS:
        if f"\tchain {chain} {{" not in text:
            with suppress(CniError):  # this table has no such chain
                nft.run(f"delete chain {name} {chain}")


def _saved(flavours: Iterable[str]) -> Iterable[tuple[str, bytes]]:
    for flavour in flavours:
        for family in ("iptables", "ip6tables"):
            tool = program.find_system(f"{family}{flavour}-save")
            if tool:
                status, text, _ = program.run_captured([tool])
                if status == 0 and text.strip():
                    yield f"{family}{flavour}-restore", text


def _fill_packet_filter(wanted: PacketFilter) -> Iterable[str]:
    """Create the rules again. Yields: what could not be."""
    from cni_py.packetfilter.libnftables import Nft

    restored = {restore for restore, saved in wanted.saved if _restore(restore, saved)}
    if not wanted.tables:
        return
    nft = Nft()
    for name, text in wanted.tables:
        family, _, table = name.partition(" ")
        if table in _SAVED_TABLES and _RESTORED_BY.get(family) in restored:
            _delete_new_chains(nft, name, text)
            continue
        try:
            nft.run(text)
        except CniError as error:
            yield f"the nftables table {name}: {error.details or error.msg}"
    nft.close()


def _restore(name: str, saved: bytes) -> bool:
    tool = program.find_system(name)
    return tool is not None and program.run_captured([tool], saved)[0] == 0
