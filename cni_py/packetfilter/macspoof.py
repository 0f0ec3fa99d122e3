"""``macspoofchk``: a bridge port accepts only frames with the pod's own MAC address.

Owns: ``table bridge cni_py``: the set ``checked`` of port names, the set ``allowed`` of port and
address, and one rule that drops frames of a checked port with an address that is not allowed: one, however many pods.

Deletes also what the Go plugin created for the same attachment: chains ``cni-br-iface-…`` in ``bridge
nat``. Source of that form: pkg/link/spoofcheck.go.
"""

from __future__ import annotations

from cni_py.errors import CheckFailed
from cni_py.journal import note
from cni_py.packetfilter import libnftables, nfnetlink
from cni_py.packetfilter import macspoof_ruleset as ruleset
from cni_py.packetfilter.masquerade import check_chain, lock
from cni_py.packetfilter.ownership import REPAIR, refill, rule_comments, stale_test
from cni_py.undo import Attempts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from cni_py.packetfilter.ownership import Owner

CHECKED, ALLOWED = f"{ruleset.TABLE} checked", f"{ruleset.TABLE} allowed"
GO_TABLE = "bridge nat"


def add(owner: Owner, port: str, mac: str) -> None:
    """Accept only frames with source ``mac`` from the bridge port. Idempotent. Raises: NotAvailable, KernelRefused."""
    with lock(), libnftables.borrowed() as handle:
        is_current = nfnetlink.rule_comments(ruleset.CHAIN) == rule_comments(ruleset.RULES)
        base = [] if is_current else [*ruleset.BASE, *refill(ruleset.CHAIN, ruleset.RULES)]
        replaced = _replaced(owner, port, mac)
        handle.run("; ".join(base + replaced + ruleset.element_commands(owner, port, mac)))


def _replaced(owner: Owner, port: str, mac: str) -> list[str]:
    """Commands that delete outdated elements of this port."""
    of_port, wanted = ruleset.port_key(port), (ruleset.port_key(port, mac), owner.comment())
    commands = []
    for element in nfnetlink.elements(ALLOWED):
        if element.key[:16] == of_port and (element.key, element.comment) != wanted:
            note(f'{ruleset.port_text(element.key)} of "{element.comment}" reassigned to "{owner.comment()}"')
            commands.append(f"delete element {ALLOWED} {{ {ruleset.port_text(element.key)} }}")
    there = nfnetlink.element(CHECKED, of_port)
    if there is not None and there.comment != owner.comment():
        commands.append(f"delete element {CHECKED} {{ {ruleset.port_text(of_port)} }}")
    return commands


def is_lost(owner: Owner, port: str, mac: str) -> bool:
    """Return whether a rule or an element of this port is missing, unless another attachment has it. Raises: KernelRefused."""
    keys = ((CHECKED, ruleset.port_key(port)), (ALLOWED, ruleset.port_key(port, mac)))
    there = [nfnetlink.element(name, key) for name, key in keys]
    if any(element is not None and element.comment != owner.comment() for element in there):
        return False
    return None in there or nfnetlink.rule_comments(ruleset.CHAIN) != rule_comments(ruleset.RULES)


def delete(owner: Owner) -> None:
    """Delete this attachment's elements, and the Go plugin's rules for it; absence is success. Raises: Incomplete."""
    attempts = Attempts()
    with lock():
        with attempts.attempt(f'elements of "{ruleset.TABLE}"'):
            _delete_elements(owner.comment().__eq__, owner.comment())
        with attempts.attempt(f'chains of "{GO_TABLE}"'):
            _delete_go_rules(owner)
    attempts.raise_if_failed("deleting the MAC address check")


def delete_port(owner: Owner, port: str) -> None:
    """Delete the elements of one port, to undo :func:`add`; absence is success. Raises: KernelRefused."""
    # The owner's other ports stay: of a second ADD that is refused, the first one's pod lives.
    comment, of_port = owner.comment(), ruleset.port_key(port)
    with lock():
        found = {name: nfnetlink.elements(name, comment) for name in (CHECKED, ALLOWED)}
        keys = {name: [e.key for e in of if e.comment == comment and e.key[:16] == of_port] for name, of in found.items()}
        keys = {name: some for name, some in keys.items() if some}
        if keys:
            commands = [f"delete element {name} {{ {', '.join(map(ruleset.port_text, some))} }}" for name, some in keys.items()]
            libnftables.change(keys, {}, "; ".join(commands))


def _delete_elements(selects: Callable[[str], bool], holding: str = "") -> None:
    libnftables.delete_elements((CHECKED, ALLOWED), ruleset.port_text, selects, holding)


def _delete_go_rules(owner: Owner) -> None:
    reference = f"{owner.container_id}-{owner.ifname}"
    chain = f"cni-br-iface-{reference}"
    if libnftables.deletable(f"{GO_TABLE} {chain}"):
        libnftables.retry(lambda: _delete_go_chains(reference, chain))


def _delete_go_chains(reference: str, chain: str) -> None:
    with libnftables.borrowed() as handle:
        jumps = [r["handle"] for r in handle.rules(f"{GO_TABLE} PREROUTING") if r.get("comment") == f"macspoofchk-{reference}"]
        commands = [f"delete rule {GO_TABLE} PREROUTING handle {number}" for number in jumps]
        names = [name for name in (chain, f"{chain}-mac") if nfnetlink.exists(f"{GO_TABLE} {name}")]
        commands += [f"{verb} chain {GO_TABLE} {name}" for verb in ("flush", "delete") for name in names]
        if commands:
            handle.run("; ".join(commands))


def check(owner: Owner, port: str, mac: str) -> None:
    """Raises: CheckFailed if the port's frames would not be checked as ADD configured it."""
    for of_set, key in ((CHECKED, ruleset.port_key(port)), (ALLOWED, ruleset.port_key(port, mac))):
        there = nfnetlink.element(of_set, key)
        if there is None or there.comment != owner.comment():
            raise CheckFailed(
                f'macspoofchk of port "{port}" is not what ADD left',
                f'in set "{of_set}" expected {ruleset.port_text(key)} of owner "{owner.comment()}", '
                f"found {there.comment if there else 'none'}",
                REPAIR if there is None else f"nft list table {ruleset.TABLE}",
            )
    with libnftables.borrowed() as handle:
        check_chain(handle, ruleset.CHAIN, ruleset.RULES)


def delete_stale(
    network: str, valid: Collection[tuple[str, str]] | None, is_stale: Callable[[str, str], bool] | None = None
) -> None:
    """Delete stale elements; the arguments are those of :func:`masquerade.delete_stale`."""
    with lock():
        _delete_elements(stale_test(network, valid, is_stale))
