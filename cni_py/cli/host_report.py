"""Report on this host's kernel, libraries and plugins, for ``cni-py version -v``. Changes nothing; lists what is missing."""

from __future__ import annotations

import gzip
import os
import sys
from functools import partial

from cni_py import __version__, files
from cni_py.plugin_table import PLUGINS
from cni_py.runtime.chain import OTHER_DIRECTORIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

LAUNCHER_MARK = b"from cni_py.client import main"
_BRIDGE_SYSCTLS = "/proc/sys/net/bridge"
_VLAN_OPTION = "CONFIG_BRIDGE_VLAN_FILTERING"


def report(cni_path: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of label and finding, in display order."""
    lines = [
        ("cni-py", f"{__version__}, {os.path.dirname(os.path.abspath(__file__))}"),
        ("python", f"{sys.version.split()[0]}, {sys.executable}"),
        ("pydantic-core", _probe(partial(_package, "pydantic-core"))),
        ("libnftables", _probe(partial(_as_root, _libnftables))),
        ("kernel", f"{os.uname().release} ({os.uname().machine})"),
        ("masquerade", _probe(partial(_as_root, _masquerade))),
        ("br_netfilter", _probe(_br_netfilter)),
        ("VLAN filtering", _probe(_vlan_filtering)),
        ("CNI_PATH", ":".join(cni_path) or "empty"),
    ]
    return [*lines, *((f"plugin {name}", _probe(partial(_plugin, name, cni_path))) for name in PLUGINS)]


def is_ours(path: str) -> bool:
    """Return whether an executable is a launcher of this suite. Raises: OSError."""
    with open(path, "rb") as file:
        return LAUNCHER_MARK in file.read(4096)


def _probe(probe: Callable[[], str]) -> str:
    try:
        return probe()
    except Exception as error:  # noqa: BLE001 — a probe that fails is a finding
        return f"unknown: {str(error) or type(error).__name__}"


def _as_root(probe: Callable[[], str]) -> str:
    """Probe as root only: the kernel's refusal for another user says nothing about this host."""
    return probe() if os.geteuid() == 0 else "unknown: requires root"


def _package(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _libnftables() -> str:
    from cni_py.packetfilter import libnftables

    with libnftables.borrowed() as handle:
        heads = [entry["metainfo"] for entry in handle.list_json("list tables") if "metainfo" in entry]
    return str(heads[0]["version"]) if heads else "unknown version"


def _masquerade() -> str:
    from cni_py.packetfilter.masquerade import backend_report

    return backend_report()


def _br_netfilter() -> str:
    if not os.path.isdir(_BRIDGE_SYSCTLS):
        return "not loaded: traffic between pods of one node does not pass iptables (Services need it: modprobe br_netfilter)"
    settings = {
        name: _text(f"{_BRIDGE_SYSCTLS}/{name}").strip() for name in ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables")
    }
    return "loaded, " + ", ".join(f"{name}={value}" for name, value in settings.items())


def _vlan_filtering() -> str:
    """Check an existing bridge's files, or else the kernel's configuration."""
    bridges = [name for name in os.listdir("/sys/class/net") if os.path.isdir(f"/sys/class/net/{name}/bridge")]
    if bridges:
        known = os.path.exists(f"/sys/class/net/{bridges[0]}/bridge/vlan_filtering")
        return f"{'available' if known else 'not in this kernel'} (bridge {bridges[0]})"
    for path in ("/proc/config.gz", f"/boot/config-{os.uname().release}"):
        if os.path.exists(path):
            options = gzip.decompress(files.read(path)).decode() if path.endswith(".gz") else _text(path)
            return f"{'available' if f'{_VLAN_OPTION}=y' in options else 'not in this kernel'} ({path})"
    return "unknown: no bridge exists, and the kernel's configuration was not found"


def _plugin(name: str, cni_path: Sequence[str]) -> str:
    found = list(_find(name, cni_path))
    lacking = _lacking_link(PLUGINS[name].link)
    if not found:
        elsewhere = list(_find(name, OTHER_DIRECTORIES))
        return f"not in CNI_PATH{f'; found {elsewhere[0]}' if elsewhere else ''}{lacking}"
    return found[0] + (f"; shadows {', '.join(found[1:])}" if found[1:] else "") + lacking


def _lacking_link(kind: str) -> str:
    """Say that the kernel lacks the links of a plugin; "" if it has them, or cannot be asked."""
    if not kind or os.geteuid() != 0:
        return ""
    from cni_py.errors import NotAvailable
    from cni_py.kernel import features, tap
    from cni_py.netlink.socket import open_host

    try:
        if kind == tap.KIND:
            tap.require()
        else:
            with open_host() as host:
                features.require_kind(host, kind)
    except NotAvailable as error:
        return f"; {error.msg}"
    return ""


def _find(name: str, directories: Sequence[str]) -> Iterator[str]:
    for directory in dict.fromkeys(directories):
        path = f"{directory}/{name}"
        if os.path.isfile(path):
            yield f"{path} ({'ours' if is_ours(path) else 'third-party'})"


def _text(path: str) -> str:
    return files.read(path).decode(errors="replace")
