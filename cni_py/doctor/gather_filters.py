"""Every rule of the packet filter: nftables, and iptables of both flavours where their tables exist. Changes nothing.

Only tables that exist are read: running iptables-save for others would create them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cni_py import files, program
from cni_py.errors import KernelRefused, NotAvailable
from cni_py.packetfilter import libnftables, nfnetlink
from cni_py.packetfilter.evaluate import IPTABLES_TABLES, Ruleset
from cni_py.packetfilter.iptables import Iptables

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BYTES = 64 << 20
_NAMES = {4: "/proc/thread-self/net/ip_tables_names", 6: "/proc/thread-self/net/ip6_tables_names"}


def read() -> tuple[Ruleset, dict[str, str]]:
    """Return the rules, and the output of each iptables-save. Raises: CniError if some of them cannot be read."""
    saved = {tool.name: _saved(tool) for tool in _tools()}
    return Ruleset.of(saved, _nft_objects()), saved


def _tools() -> Iterator[Iptables]:
    """Yield the programs whose tables exist."""
    for version, family in ((4, "ip"), (6, "ip6")):
        if any(nfnetlink.exists(f"{family} {table}") for table in sorted(IPTABLES_TABLES)):
            yield Iptables(version, "-nft")
        try:
            if files.read(_NAMES[version]).split():
                yield Iptables(version, "-legacy")
        except FileNotFoundError:
            continue


def _saved(tool: Iptables) -> str:
    path = tool.find("-save")
    if path is None:
        raise NotAvailable(f'"{tool.name}-save" is not installed, and its tables have rules', hint="install iptables")
    status, output = program.run([path], limit_bytes=MAX_BYTES, stderr_fd=_null())
    if status != 0:
        raise KernelRefused(f'"{path}" failed', program.describe(status))
    return output.decode(errors="replace")


_null_fd = -1


def _null() -> int:
    """Return a descriptor that takes the warnings about tables of the other flavour."""
    global _null_fd
    if _null_fd < 0:
        import os

        _null_fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    return _null_fd


def _nft_objects() -> list[dict[str, Any]]:
    """Raises: NotAvailable, KernelRefused."""
    number = nfnetlink.refusal()
    if number in nfnetlink.NO_NFTABLES:
        return []
    with libnftables.borrowed() as handle:
        return handle.list_json("list ruleset")
