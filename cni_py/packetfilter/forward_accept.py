"""Accept what pods send and are answered, in iptables' FORWARD, and isolate bridges: the rules of the Go firewall plugin.

Owns, in the table ``filter``, IPv4 and IPv6: two rules per address in CNI-FORWARD. Shared: CNI-FORWARD, the administrator's
chain, CNI-ISOLATION-STAGE-1 and -2 with the rules of each bridge, and the jumps to them.

How it works. An accept in a table of our own would not help against a drop elsewhere, so the rules are where ``iptables`` puts
them: in the flavour (nft or legacy) whose table ``filter`` this namespace has; if it has both or none, in the default one. A
change is one ``iptables-restore --noflush``: all of it or nothing. The rules have no owner in them: the Go plugin deletes a
rule only if it is exactly as it would write it. The plugin's records name the owner of an address.

    add(addresses, admin_chain, isolation: Isolation | None)      missing(…) -> list[str]      delete(addresses)

Source: containernetworking/plugins plugins/meta/firewall/iptables.go, ingresspolicy.go.
"""

from __future__ import annotations

from ipaddress import ip_network

from cni_py.packetfilter import libnftables, masquerade, nfnetlink
from cni_py.packetfilter.iptables import Iptables, is_legacy
from cni_py.undo import Attempts
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from ipaddress import IPv4Address, IPv6Address

    Address = IPv4Address | IPv6Address
    Chains = dict[str, list[str]]

FORWARD, ACCEPTED, ADMIN = "FORWARD", "CNI-FORWARD", "CNI-ADMIN"
STAGE_1, STAGE_2 = "CNI-ISOLATION-STAGE-1", "CNI-ISOLATION-STAGE-2"
_TO_ACCEPTED, _TO_ADMIN = "CNI firewall plugin rules", "CNI firewall plugin admin overrides"
_OF_ISOLATION = "CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)"
_FAMILIES = {4: "ip", 6: "ip6"}


class Isolation(Value):
    """Packets from other bridges with isolation are dropped; ``is_total``: those between two pods of this bridge, too."""

    bridge: str
    is_total: bool


# ---- the rules: pure --------------------------------------------------------------------------


def rules_of(address: Address) -> list[str]:
    """The rules that accept what an address sends, and what it is answered."""
    net = ip_network(address)
    return [f"-A {ACCEPTED} -d {net} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", f"-A {ACCEPTED} -s {net} -j ACCEPT"]


def _commented(rule: str, comment: str) -> str:
    match, _, target = rule.partition(" -j ")
    return f'{match} -m comment --comment "{comment}" -j {target}'


def wanted(addresses: Sequence[Address], admin_chain: str, isolation: Isolation | None) -> list[tuple[str, bool]]:
    """Every rule of these addresses of one family, and whether it belongs at the head of its chain.

    In this order: of two at the head of one chain the later one comes first.
    """
    rules = [
        (_commented(f"-A {FORWARD} -j {ACCEPTED}", _TO_ACCEPTED), True),
        (_commented(f"-A {ACCEPTED} -j {admin_chain}", _TO_ADMIN), True),
    ]
    if isolation:
        bridge, policy = isolation.bridge, "isolated" if isolation.is_total else "same-bridge"
        comment = f"CNI firewall plugin rules (ingressPolicy: {policy})"
        rules += [
            (_commented(f"-A {FORWARD} -j {STAGE_1}", _OF_ISOLATION), True),
            (_commented(f"-A {STAGE_1} -j RETURN", _OF_ISOLATION), False),
            (_commented(f"-A {STAGE_1} -i {bridge} ! -o {bridge} -j {STAGE_2}", comment), True),
            (_commented(f"-A {STAGE_2} -j RETURN", _OF_ISOLATION), False),
            (_commented(f"-A {STAGE_2} -o {bridge} -j DROP", _OF_ISOLATION), True),
        ]
        if isolation.is_total:
            rules.append((_commented(f"-A {STAGE_1} -i {bridge} -o {bridge} -j DROP", comment), True))
    return rules + [(rule, False) for address in addresses for rule in rules_of(address)]


def commands(there: Chains, rules: Sequence[tuple[str, bool]]) -> list[str]:
    """The commands that create missing chains and rules, and correct the order of the jumps in FORWARD."""
    chains = dict.fromkeys(name for rule, _ in rules for name in _chains_in(rule))
    out = [f":{name} - [0:0]" for name in chains if name not in there]
    for rule, is_first in rules:
        chain = rule.split(" ", 2)[1]
        if _bare(rule) not in [_bare(line) for line in there.get(chain, [])]:
            out.append(rule if not is_first else f"-I {chain} 1" + rule.removeprefix(f"-A {chain}"))
    jump = next((rule for rule, _ in rules if rule.endswith(f" -j {STAGE_1}")), None)
    if jump and _is_late(there):
        out += [f"-D {line.removeprefix('-A ')}" for line in there[FORWARD] if _bare(line) == _bare(jump)]
        out.append(f"-I {FORWARD} 1" + jump.removeprefix(f"-A {FORWARD}"))
    elif _place(there, STAGE_1) is not None and _place(there, ACCEPTED) is None:
        place = (_place(there, STAGE_1) or 0) + 2
        out = [line.replace(f"-I {FORWARD} 1", f"-I {FORWARD} {place}") if line.endswith(ACCEPTED) else line for line in out]
    return out


def _chains_in(rule: str) -> list[str]:
    """The chain that a rule is in, and the one that it jumps to; without the kernel's."""
    names = [rule.split(" ", 2)[1], rule.rpartition(" -j ")[2]]
    return [name for name in names if name not in (FORWARD, "RETURN", "DROP", "ACCEPT")]


def _bare(rule: str) -> list[str]:
    """The words of a rule in any order, without its comment: versions of the Go plugin differ in it."""
    before, quote, after = rule.partition(' -m comment --comment "')
    return sorted((before + after.partition('"')[2] if quote else before).split())


def _place(there: Chains, target: str) -> int | None:
    """The index of the jump to a chain in FORWARD."""
    lines = [_bare(line) for line in there.get(FORWARD, [])]
    jump = _bare(f"-A {FORWARD} -j {target}")
    return lines.index(jump) if jump in lines else None


def _is_late(there: Chains) -> bool:
    """Return whether the jump to the isolation comes after the one that accepts."""
    isolated, accepted = _place(there, STAGE_1), _place(there, ACCEPTED)
    return isolated is not None and accepted is not None and isolated > accepted


# ---- the kernel -------------------------------------------------------------------------------


def tool_for(version: int) -> Iptables:
    """The program for the flavour that this namespace uses."""
    has_nft, has_legacy = nfnetlink.exists(f"{_FAMILIES[version]} filter {FORWARD}"), is_legacy(version, "filter")
    flavour = {(True, False): "-nft", (False, True): "-legacy"}.get((has_nft, has_legacy), "")
    return Iptables(version, flavour) if Iptables(version, flavour).find() else Iptables(version)


def check_usable() -> None:
    """Raises: NotAvailable if iptables is not installed."""
    tool_for(4).path("-restore")


def add(addresses: Iterable[Address], admin_chain: str = ADMIN, isolation: Isolation | None = None) -> None:
    """Accept these addresses. Idempotent. Raises: NotAvailable, KernelRefused."""
    with masquerade.lock():
        for version, mine in _by_version(addresses):
            tool = tool_for(version)
            lines = commands(tool.table("filter"), wanted(mine, admin_chain, isolation))
            if lines:
                tool.apply(lines, "filter")


def missing(
    addresses: Iterable[Address],
    admin_chain: str = ADMIN,
    isolation: Isolation | None = None,
    tables: dict[int, dict[str, list[str]]] | None = None,
) -> list[tuple[str, str]]:
    """Missing rules, and jumps that come too late, as ``-A`` lines, each with the command that repairs it.

    Args:
        tables: by IP version, read before for another attachment, or to be filled for the next one.

    Raises: NotAvailable, KernelRefused.
    """
    found = []
    tables = {} if tables is None else tables
    for version, mine in _by_version(addresses):
        if version not in tables:
            tables[version] = tool_for(version).table("filter")
        there, program = tables[version], "iptables" if version == 4 else "ip6tables"
        for rule, is_first in wanted(mine, admin_chain, isolation):
            chain = rule.split(" ", 2)[1]
            if _bare(rule) not in map(_bare, there.get(chain, [])):
                at_its_place = f"-I {chain} 1" + rule.removeprefix(f"-A {chain}") if is_first else rule
                found.append((rule, f"{program} {at_its_place}"))
        if isolation and _is_late(there):
            words = _commented(f"{FORWARD} -j {STAGE_1}", _OF_ISOLATION).removeprefix(FORWARD)
            repair = f"{program} -D {FORWARD}{words}; {program} -I {FORWARD} 1{words}"
            found.append((f"-A {FORWARD} -j {STAGE_1}, before that to {ACCEPTED}", repair))
    return found


def delete(addresses: Iterable[Address]) -> None:
    """Delete the rules of these addresses, of both flavours; absence is success. Raises: Incomplete."""
    attempts = Attempts()
    with masquerade.lock():
        for version, mine in _by_version(addresses):
            for tool in tools_with_rules(version):
                with attempts.attempt(f"rules of {', '.join(map(str, mine))} in {tool.name}"):
                    _delete_from(tool, mine)
    attempts.raise_if_failed("deleting rules that accept")


def _delete_from(tool: Iptables, addresses: Collection[Address]) -> None:
    words = [_bare(rule) for address in addresses for rule in rules_of(address)]

    def delete_lines() -> None:
        stale = [line for line in tool.rules(ACCEPTED, "filter") or [] if _bare(line) in words]
        if stale:
            tool.apply(["-D" + line.removeprefix("-A") for line in stale], "filter")

    libnftables.retry(delete_lines)


def tools_with_rules(version: int) -> list[Iptables]:
    """The programs whose table holds CNI-FORWARD, or in the legacy form may hold it; none of them is run."""
    has_nft = nfnetlink.exists(f"{_FAMILIES[version]} filter {ACCEPTED}")
    tools = [Iptables(version, "-nft")] if has_nft else []
    tools += [Iptables(version, "-legacy")] if is_legacy(version, "filter") else []
    return [tool for tool in tools if tool.find()]


def _by_version(addresses: Iterable[Address]) -> list[tuple[int, list[Address]]]:
    every = list(addresses)
    found = [(version, [address for address in every if address.version == version]) for version in (4, 6)]
    return [(version, mine) for version, mine in found if mine]
