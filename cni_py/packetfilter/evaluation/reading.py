"""Reading of every rule: nftables, and iptables where its tables exist. Changes nothing.

Only tables that exist are read: running iptables-save for others would create them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cni_py import files, program
from cni_py.errors import CniError, KernelRefused, NotAvailable
from cni_py.packetfilter import libnftables, nfnetlink
from cni_py.packetfilter.evaluation.ruleset import Ruleset
from cni_py.packetfilter.evaluation.saved import TABLES
from cni_py.packetfilter.iptables import Iptables

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MAX_BYTES = 64 << 20
_NAMES = {4: "/proc/thread-self/net/ip_tables_names", 6: "/proc/thread-self/net/ip6_tables_names"}


def read() -> tuple[Ruleset, dict[str, str]]:
    """Return the rules, those of iptables as its programs print them, and that output.

    Raises: CniError if some of them cannot be read.
    """
    objects, texts = _nftables()
    saved = {tool.name: _saved(tool) for tool in (*_nft_tools(objects), *_legacy_tools())}
    return Ruleset.of(saved, objects, texts), saved


def read_as_far_as_possible() -> Ruleset:
    """Return the rules, those of iptables-nft as nft prints them, whose handles a trace has; and what cannot be read."""
    saved, problems = dict[str, str](), list[str]()
    for tool in _legacy_tools():
        try:
            saved[tool.name] = _saved(tool)
        except CniError as error:
            problems.append(f"{tool.name} cannot be read: {error.msg}")
    try:
        return Ruleset.of(saved, *_nftables(), problems)
    except CniError as error:
        return Ruleset.of(saved, problems=[f"nftables cannot be read: {error.msg}", *problems])


def _nft_tools(objects: Iterable[Mapping[str, Any]]) -> Iterator[Iptables]:
    """Yield the programs of the nft flavour whose tables exist."""
    # not by nfnetlink.exists(): its sockets are kept, and belong to the namespace in which they were opened
    families = {of["table"]["family"] for of in objects if "table" in of and of["table"]["name"] in TABLES}
    for version, family in ((4, "ip"), (6, "ip6")):
        if family in families:
            yield Iptables(version, "-nft")


def _legacy_tools() -> Iterator[Iptables]:
    for version, path in _NAMES.items():
        try:
            if files.read(path).split():
                yield Iptables(version, "-legacy")
        except FileNotFoundError:
            continue


def _saved(tool: Iptables) -> str:
    path = tool.find("-save")
    if path is None:
        raise NotAvailable(f'"{tool.name}-save" is not installed, and its tables have rules', hint="install iptables")
    status, output = program.run_quietly([path], MAX_BYTES)  # it warns about tables of the other flavour
    if status != 0:
        raise KernelRefused(f'"{path}" failed', program.describe(status))
    text = output.decode(errors="replace")
    if tool.flavour == "-legacy" and "(nf_tables)" in text.partition("\n")[0]:  # the program without a flavour in its name
        raise NotAvailable(f'"{tool.name}-save" is not installed, and its tables have rules', f'"{path}" is of the nft flavour')
    return text


def _nftables() -> tuple[list[dict[str, Any]], dict[tuple[str, str, str, int], str]]:
    """Raises: NotAvailable, KernelRefused."""
    return ([], {}) if nfnetlink.refusal() in nfnetlink.NO_NFTABLES else libnftables.read_ruleset()
