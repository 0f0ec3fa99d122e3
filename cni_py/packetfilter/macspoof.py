"""``macspoofchk``: from a bridge port only frames with the pod's own MAC address pass.

Owns: ``table bridge cni_py``: the set ``checked`` of port names, the set ``allowed`` of port and
address, and one rule that drops what is checked and not allowed; flat, however many pods.

Deletes also what the Go plugin made for the same attachment: chains ``cni-br-iface-…`` in ``bridge
nat``. Source of that form: pkg/link/spoofcheck.go.
"""

from __future__ import annotations

from cni_py.errors import CheckFailed
from cni_py.journal import note
from cni_py.packetfilter import libnftables, nfnetlink, ownership
from cni_py.packetfilter.masquerade import check_chain, lock
from cni_py.undo import Attempts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from cni_py.packetfilter.ownership import Owner

CHECKED, ALLOWED = f"{ownership.SPOOF_TABLE} checked", f"{ownership.SPOOF_TABLE} allowed"
GO_TABLE = "bridge nat"


def add(owner: Owner, port: str, mac: str) -> None:
    """Let only frames with source ``mac`` in through the bridge port. May be repeated. Raises: NotAvailable, KernelRefused."""
    with lock(), libnftables.borrowed() as handle:
        stands = nfnetlink.rule_comments(ownership.SPOOF_CHAIN) == ownership.rule_comments(ownership.SPOOF_PREROUTING)
        base = [] if stands else [*ownership.SPOOF_BASE, *ownership.refill(ownership.SPOOF_CHAIN, ownership.SPOOF_PREROUTING)]
        replaced = _replaced(owner, port, mac)
        handle.run("; ".join(base + replaced + ownership.mac_elements(owner, port, mac)))


def _replaced(owner: Owner, port: str, mac: str) -> list[str]:
    """Commands that delete what the sets say of this port and is not to be said any more."""
    of_port, wanted = ownership.port_key(port), (ownership.port_key(port, mac), owner.comment())
    commands = []
    for element in nfnetlink.elements(ALLOWED):
        if element.key[:16] == of_port and (element.key, element.comment) != wanted:
            note(f'{ownership.port_text(element.key)} of "{element.comment}" goes over to "{owner.comment()}"')
            commands.append(f"delete element {ALLOWED} {{ {ownership.port_text(element.key)} }}")
    there = nfnetlink.element(CHECKED, of_port)
    if there is not None and there.comment != owner.comment():
        commands.append(f"delete element {CHECKED} {{ {ownership.port_text(of_port)} }}")
    return commands


def delete(owner: Owner) -> None:
    """Delete this attachment's elements, and the Go plugin's rules for it; absence is success. Raises: Incomplete."""
    attempts = Attempts()
    with lock():
        with attempts.attempt(f'elements of "{ownership.SPOOF_TABLE}"'):
            _delete_elements(owner.comment().__eq__, owner.comment())
        with attempts.attempt(f'chains of "{GO_TABLE}"'):
            _delete_go_rules(owner)
    attempts.raise_if_failed("deleting the check of the MAC address")


def _delete_elements(doomed: Callable[[str], bool], holding: str = "") -> None:
    for name in (CHECKED, ALLOWED):
        libnftables.delete_elements(name, ownership.port_text, doomed, holding)


def _delete_go_rules(owner: Owner) -> None:
    reference = f"{owner.container_id}-{owner.ifname}"
    chain = f"cni-br-iface-{reference}"
    if not libnftables.deletable(f"{GO_TABLE} {chain}"):
        return
    with libnftables.borrowed() as handle:
        jumps = [r["handle"] for r in handle.rules(f"{GO_TABLE} PREROUTING") if r.get("comment") == f"macspoofchk-{reference}"]
        commands = [f"delete rule {GO_TABLE} PREROUTING handle {number}" for number in jumps]
        names = [name for name in (chain, f"{chain}-mac") if nfnetlink.exists(f"{GO_TABLE} {name}")]
        commands += [f"flush chain {GO_TABLE} {name}" for name in names]
        handle.run("; ".join(commands + [f"delete chain {GO_TABLE} {name}" for name in names]))


def check(owner: Owner, port: str, mac: str) -> None:
    """Raises: CheckFailed where the port's frames would not be treated as ADD arranged it."""
    for of_set, key in ((CHECKED, ownership.port_key(port)), (ALLOWED, ownership.port_key(port, mac))):
        there = nfnetlink.element(of_set, key)
        if there is None or there.comment != owner.comment():
            raise CheckFailed(
                f'macspoofchk of port "{port}" is not what ADD left',
                f'in set "{of_set}" expected {ownership.port_text(key)} of owner "{owner.comment()}", '
                f"found {there.comment if there else 'none'}",
                f"nft list table {ownership.SPOOF_TABLE}",
            )
    with libnftables.borrowed() as handle:
        check_chain(handle, ownership.SPOOF_CHAIN, ownership.SPOOF_PREROUTING)


def delete_stale(
    network: str, valid: Collection[tuple[str, str]] | None, is_dead: Callable[[str, str], bool] | None = None
) -> None:
    """As :func:`masquerade.delete_stale`."""
    with lock():
        _delete_elements(ownership.stale(network, valid, is_dead))
