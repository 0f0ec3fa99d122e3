"""CHECK of host ports: compare every mapping and every chain on its path with what ADD configured. Changes nothing.

Rules of the Go plugin are accepted if the configuration names no back end and we have none.
"""

from __future__ import annotations

from cni_py.errors import CheckFailed
from cni_py.kernel import sysctl
from cni_py.packetfilter import libnftables, nfnetlink
from cni_py.packetfilter.hostports import iptables
from cni_py.packetfilter.hostports import rules as portmap_rules
from cni_py.packetfilter.hostports.forwarding import (
    GO_TABLES,
    choose_backend,
    localhost_links,
    unprotected,
    wanted_elements,
)
from cni_py.packetfilter.hostports.rules import HOSTPORTS, LOCALNET
from cni_py.packetfilter.ownership import IF, REPAIR, TABLE, rule_comments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.packetfilter.hostports.rules import Mapping, Wanted
    from cni_py.packetfilter.nfnetlink import Element


def check(wanted: Wanted, backend: str = "") -> None:
    """Raises: CheckFailed if connections to one of the ports would not be translated as ADD configured it."""
    ours = any(nfnetlink.elements(name, wanted.owner.comment()) for name in HOSTPORTS)
    if choose_backend(backend) == "iptables" or (not backend and not ours and iptables.made(wanted.owner)):
        missing = iptables.missing(wanted)
        if missing:
            raise CheckFailed(
                f'port mappings of "{wanted.owner}" are incomplete',
                f'expected "{missing[0]}", found no such rule',
                REPAIR,
            )
    elif backend or ours or not _go_rules_suffice(wanted):
        for mapping in wanted.mappings:
            _check_elements(mapping, wanted)
        _check_chains(wanted)
        _check_protection(wanted)
    _check_localhost(wanted)


def _go_rules_suffice(wanted: Wanted) -> bool:
    """Return whether the Go plugin's nftables back end has a rule for each mapping."""
    for version in wanted.versions:
        comments = nfnetlink.rule_comments(f"{GO_TABLES[version == 6]} hostports")
        if comments.count(wanted.owner.container_id) < len(wanted.of(version)):
            return False
    return True


def _check_elements(mapping: Mapping, wanted: Wanted) -> None:
    for name, element in wanted_elements(mapping, wanted).items():
        found = nfnetlink.element(name, portmap_rules.key_of(mapping))
        if found != element:
            raise CheckFailed(
                f'the mapping of "{mapping}" is not what ADD left',
                f'in map "{name}" expected {_in_words(element)}, found {_in_words(found)}',
                REPAIR if found is None or found.comment == wanted.owner.comment() else f"nft list map {name}",
            )


def _in_words(element: Element | None) -> str:
    if element is None:
        return "none"
    leads_to = f"jump {element.target}" if element.target else portmap_rules.target_text(element.data)
    return f'"{leads_to}" of owner "{element.comment}"'


def _check_chains(wanted: Wanted) -> None:
    """Raises: CheckFailed."""
    with libnftables.borrowed() as handle:
        chains = handle.chain_lines(TABLE)
    for chain, (_, lines) in portmap_rules.wanted_chains(wanted).items():
        name = chain.removeprefix(f"{TABLE} ")
        found = [portmap_rules.as_printed(line) for line in chains.get(name, ())]
        expected = [portmap_rules.as_printed(line) for line in lines]
        if name.startswith(IF):  # nft may print conditions in another way than the configuration has them
            found, expected = rule_comments(found), rule_comments(expected)
        if found != expected:
            is_renamed = found and rule_comments(found) == rule_comments(expected)  # a repair would leave those
            raise CheckFailed(
                f'the nftables chain "{chain}" is not what ADD left',
                f'expected "{"; ".join(expected)}", found {repr("; ".join(found)) if name in chains else "no such chain"}',
                f"nft flush chain {chain}; {REPAIR}" if is_renamed else REPAIR,
            )


def _check_protection(wanted: Wanted) -> None:
    for link in unprotected(localhost_links(wanted)):
        raise CheckFailed(
            f'pods behind "{link}" can connect to loopback addresses of the host',
            f'in set "{LOCALNET}" expected "{link}", found none',
            REPAIR,
        )


def _check_localhost(wanted: Wanted) -> None:
    for link in localhost_links(wanted):
        name = f"net/ipv4/conf/{link}/route_localnet"
        if sysctl.read(name) != "1":
            raise CheckFailed(
                f'127.0.0.1 cannot connect to the pods behind "{link}"', f"{name}: expected 1, found 0", f"sysctl -w {name}=1"
            )
