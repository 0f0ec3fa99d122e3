"""State of the host: file systems, limits of the kernel, certificates, programs, network configurations. Changes nothing."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

from cni_py import config, files
from cni_py.c_library import Library, c_int, get_errno
from cni_py.datastore import tls
from cni_py.doctor import config_check
from cni_py.doctor.facts import Certificate, ConfFile, Counters, Disk, Pool, Program
from cni_py.errors import CniError
from cni_py.plugin_table import PLUGINS
from cni_py.plugins.usage import usage_of
from cni_py.runtime import network_config
from cni_py.spec.call import Call

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any

    from cni_py.flanneld.options import Options

ENDINGS = (".conf", ".conflist", ".json")
WRITTEN = ("/run", "/run/flannel", "/run/cni-py", "/var/lib/cni", "/var/lib/cni-py", "/etc/cni/net.d")
_HEAD = 256
"""Bytes that the kernel reads."""
_SHOWN = 20
_ELF_ORDER, _ELF_MACHINE, _ELF_BIG_ENDIAN = 5, 18, 2
_I386, _ARM, _X86_64, _ARM64 = 3, 40, 62, 183
_MACHINES = {
    _I386: "i386", _ARM: "arm", _X86_64: "amd64", _ARM64: "arm64", 20: "ppc", 21: "ppc64le", 22: "s390x", 243: "riscv64",
    258: "loong64", 8: "mips",
}  # fmt: skip
_ALSO_EXECUTED = ((_X86_64, _I386), (_ARM64, _ARM))
_EMULATORS = {_I386: "i386", _ARM: "arm", _X86_64: "x86_64", _ARM64: "aarch64", 21: "ppc64le", 22: "s390x", 243: "riscv64"}


def conf_files(directory: str) -> list[ConfFile]:
    """Return the network configurations in the order in which a runtime takes the first. Raises: IOFailure."""
    paths = network_config.conf_files(directory, *ENDINGS)
    return [_conf_file(path) for path in sorted(paths, key=os.path.basename)]


def _conf_file(path: str) -> ConfFile:
    checked = config_check.check(path)
    network = None
    with suppress(OSError, CniError, KeyError):
        content = files.read(path, config.MAX_BYTES)
        raw = config.decode(content, path)
        is_list = path.endswith(".conflist")
        network = network_config.parse_list(path, content, raw) if is_list else network_config.wrap_single(path, raw)
    return ConfFile(path, checked, network)


def programs(names: Iterable[str], directories: Sequence[str]) -> list[Program]:
    """Return the executables of these plugins, each with what is wrong with it."""
    return [_program(name, directories) for name in dict.fromkeys(names)]


def _program(name: str, directories: Sequence[str]) -> Program:
    """Return the first that can be executed, as libcni finds it; else the first that exists."""
    found = [f"{directory}/{name}" for directory in directories if os.path.lexists(f"{directory}/{name}")]
    faults = [Program(name, path, _why_not(path)) for path in found]
    good = next((one for one in faults if not one.fault), None)
    return good or (faults[0] if faults else Program(name, fault=f"it is not in {':'.join(directories) or 'CNI_PATH'}"))


def _why_not(path: str) -> str:  # noqa: PLR0911 — a line for each reason
    """Return why a file cannot be executed; "" if it can."""
    if not os.path.exists(path):
        return f"it is a link to {os.readlink(path)}, which does not exist"
    if not os.path.isfile(path):
        return "it is not a file"
    if not os.stat(path).st_mode & 0o111:
        return "it is not executable"
    if not os.path.getsize(path):
        return "it is empty"
    if os.geteuid() == 0 and not os.access(path, os.X_OK):  # root may, unless the mount forbids it
        return "its file system is mounted noexec"
    with suppress(OSError), open(path, "rb") as file:
        return _why_not_executed(file.read(_HEAD))
    return ""


def _why_not_executed(head: bytes) -> str:
    """Return why the kernel cannot execute a file that begins like this; "" if it can."""
    if head.startswith(b"#!"):
        interpreter = head[2:].split(b"\n", 1)[0].split()
        exists = not interpreter or os.path.exists(interpreter[0])
        return "" if exists else f"its interpreter {os.fsdecode(interpreter[0])} does not exist"
    machine, own = _machine(head), _own_machine()
    if machine is None:
        begins = head.split(b"\n", 1)[0][:_SHOWN].decode(errors="replace")
        return f'it is not a program: it begins with "{begins}"' if begins.isprintable() else "it is not a program"
    if own is None or machine == own or (own, machine) in _ALSO_EXECUTED or _is_emulated(machine):
        return ""
    return f"it is for {_MACHINES.get(machine, f'machine {machine}')}, and this one is {_MACHINES.get(own, str(own))}"


def _machine(head: bytes) -> int | None:
    """Return the machine that an ELF file is for; None: it is not one."""
    if not head.startswith(b"\x7fELF") or len(head) < _ELF_MACHINE + 2:
        return None
    order = "big" if head[_ELF_ORDER] == _ELF_BIG_ENDIAN else "little"
    return int.from_bytes(head[_ELF_MACHINE : _ELF_MACHINE + 2], order)  # type: ignore[arg-type]  # one of the two words


@cache
def _own_machine() -> int | None:
    """Return the machine that this process was built for."""
    with suppress(OSError), open("/proc/self/exe", "rb") as file:
        return _machine(file.read(_HEAD))
    return None


def _is_emulated(machine: int) -> bool:
    """Return whether the kernel has an interpreter for programs of this machine (binfmt_misc)."""
    return os.path.exists(f"/proc/sys/fs/binfmt_misc/qemu-{_EMULATORS.get(machine, 'none')}")


def pools(networks: Iterable[network_config.Network], cni_path: Sequence[str]) -> list[Pool]:
    """Return the range sets of these networks, and how many addresses of each are taken. Raises: CniError."""
    found = []
    for network in networks:
        for plugin in network.plugins:
            name = str(plugin.get("type"))
            if name not in PLUGINS or not PLUGINS[name].gives_addresses:
                continue
            conf = {**plugin, "name": network.name, "cniVersion": network.cni_version}
            call = Call(verb="STATUS", plugin=name, cni_path=tuple(cni_path), conf=conf)
            with suppress(FileNotFoundError):
                found += [Pool(network.name, str(ranges), ranges.capacity(), taken) for ranges, taken in usage_of(call)]
    return found


def disks(directories: Iterable[str]) -> list[Disk]:
    """Return the file systems of directories that are written to, each once, under the first of its directories."""
    found: dict[int, Disk] = {}
    for directory in directories:
        while not os.path.isdir(directory) and directory != "/":
            directory = os.path.dirname(directory)  # noqa: PLW2901 — the next one that exists
        with suppress(OSError):
            device, of = os.stat(directory).st_dev, os.statvfs(directory)
            is_read_only = bool(of.f_flag & os.ST_RDONLY)
            disk = Disk(directory, of.f_bfree * of.f_frsize, of.f_blocks * of.f_frsize, of.f_ffree, of.f_files, is_read_only)
            found.setdefault(device, disk)
    return list(found.values())


def counters() -> Counters:
    return Counters(
        _number("/proc/sys/net/netfilter/nf_conntrack_count"),
        _number("/proc/sys/net/netfilter/nf_conntrack_max"),
        _neighbour_entries(),
        _number("/proc/sys/net/ipv4/neigh/default/gc_thresh3"),
        _inotify_fault(),
    )


def _number(path: str) -> int | None:
    try:
        return int(files.read(path))
    except (OSError, ValueError, CniError):
        return None


def _neighbour_entries() -> int | None:
    """Return the size of the kernel's ARP table, which all namespaces share."""
    with suppress(OSError, ValueError, IndexError, CniError):
        header, first, *_ = files.read("/proc/thread-self/net/stat/arp_cache").decode().splitlines()
        return int(first.split()[header.split().index("entries")], 16)
    return None


def _inotify_fault() -> str:
    """Return why no process of this user can watch files; "" if it can."""
    library = Library(None)
    library.inotify_init1.restype = c_int
    fd = library.inotify_init1(c_int(os.O_CLOEXEC))
    if fd < 0:
        return os.strerror(get_errno())
    os.close(fd)
    return ""


def certificates(options: Options | None) -> list[Certificate]:
    """Return the certificates with which flanneld reaches etcd."""
    if options is None or options.kube_subnet_mgr or options.datastore:
        return []
    of = ((options.etcd_certfile, "client certificate for etcd"), (options.etcd_cafile, "CA certificate of etcd"))
    return [one for path, what in of if path for one in _certificates(path, what)]


def _certificates(path: str, what: str) -> Iterator[Certificate]:
    try:
        found = tls.validity(files.read(path))
    except (OSError, CniError) as error:
        yield Certificate(path, what, fault=getattr(error, "strerror", "") or str(error))
        return
    if not found:
        yield Certificate(path, what, fault="it has no certificate")
    for begins, ends in found:
        yield Certificate(path, what, begins, ends)


def newest(paths: Iterable[str]) -> float:
    """Return the latest time at which one of these files was written."""
    times = []
    for path in paths:
        with suppress(OSError):
            times.append(os.stat(path).st_mtime)
    return max(times, default=0.0)


def port_holders(port: int) -> list[str]:
    """Return the programs with a socket on a UDP port; that of a tunnel device belongs to the kernel, and no process has it."""
    found = []
    for table in ("udp", "udp6"):
        with suppress(OSError, CniError):
            for line in files.read(f"/proc/thread-self/net/{table}", 16 << 20).decode().splitlines()[1:]:
                fields = line.split()
                if int(fields[1].rpartition(":")[2], 16) == port:
                    found.append(fields[9])
    return [holder for inode in dict.fromkeys(found) if (holder := _holder(inode))]


def _holder(inode: str) -> str:
    """Return the process with this socket, in words."""
    wanted = f"socket:[{inode}]"
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{fd}") == wanted:
                    name = files.read(f"/proc/{pid}/comm").decode(errors="replace").strip()
                    return f"{name}, process {pid}"
    return ""


def plugins_of(networks: Iterable[network_config.Network]) -> Iterator[str]:
    """Yield the names of the plugins that a runtime executes, and of those that a third-party plugin in it would."""
    for network in networks:
        for plugin in network.plugins:
            yield str(plugin.get("type"))
            ipam: Mapping[str, Any] | Any = plugin.get("ipam")
            name = ipam.get("type") if isinstance(ipam, dict) else None
            if isinstance(name, str) and name and name not in PLUGINS:
                yield name
