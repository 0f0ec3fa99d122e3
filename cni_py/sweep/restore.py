"""Restore the rules of live attachments that another process has deleted, as ``nft flush ruleset`` and a firewall's restart do.

How it works. ADD writes into the attachment's record what its rules need: the addresses, the MAC address, portmap's
configuration. For a record whose sandbox still exists the rules are compared, and only what is missing is added, by the
functions of ADD: nothing is taken from an attachment that has the address or the host port now. A DEL or GC that comes at
the same time finds all of it: rules are added under the locks of the attachment and of its network, and only while its record
exists. An attachment that is busy is left to the call that has the lock. Without records nothing is restored.

Run by an ADD that found the base chains missing, by GC, by the agent (agent/rules_watch.py), and by ``cni-py repair``.
"""

from __future__ import annotations

from ipaddress import ip_interface, ip_network

from cni_py import config, files
from cni_py.attachment import record as attachments
from cni_py.attachment.lock import AttachmentLock, NetworkLock
from cni_py.errors import CniError
from cni_py.journal import Journal, note
from cni_py.packetfilter import macspoof, masquerade
from cni_py.packetfilter.hostports import forwarding
from cni_py.packetfilter.ownership import Owner
from cni_py.plugins.meta import firewall, portmap
from cni_py.spec.call import Call
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from types import ModuleType

    Tables = dict[int, dict[str, list[str]]]
    """Tables of iptables by IP version: read once, since a program reads them."""
    from typing import Any

RESTORED, WOULD_RESTORE, FAILED, BUSY = "restored", "would be restored", "failed", "busy"
_DAMAGED = (CniError, KeyError, TypeError, ValueError, AttributeError)
"""Errors of a record that is damaged, or of another version."""


class Lost(Value):
    """Rules of one live attachment that were missing, what was done about it, and why it failed."""

    container_id: str
    ifname: str
    network: str
    what: str
    outcome: str
    why: str = ""

    def as_json(self) -> dict[str, str]:
        return {
            "outcome": self.outcome,
            "what": self.what,
            "containerID": self.container_id,
            "ifname": self.ifname,
            "network": self.network,
            "why": self.why,
        }


def restore(
    networks: Collection[str] | None = None, dry_run: bool = False, comments: Collection[str] | None = None
) -> list[Lost]:
    """Restore the rules of every live attachment of these networks (None: of all). Returns: what was missing.

    Args:
        comments: only of the attachments whose elements have these comments (:meth:`Owner.comment`).
    """
    found: list[Lost] = []
    tables: Tables = {}
    with Journal("restore rules", "" if dry_run else "repair"):
        for directory in attachments.directories():
            # the newest first: it has a host port that several want
            names = [name for name in attachments.names_in(directory) if comments is None or _has_comment(name, comments)]
            paths = [f"{directory}/{name}" for name in names]
            for path in sorted(paths, key=files.changed_at, reverse=True):
                found += _restore_of(path, networks, dry_run, tables)
    return found


def of_others() -> None:
    """Restore what others have lost, after a GC, and after an ADD that found the base chains missing. Never fails."""
    try:
        restore()
    except Exception as error:  # noqa: BLE001 — what others have lost must not cost this pod its network
        with Journal("restore rules", "repair"):
            note(f"rules of other attachments not restored: {type(error).__name__}: {error}")


def _has_comment(name: str, comments: Collection[str]) -> bool:
    """Return whether the attachment of this record may have one of the comments; a name that was cut may have any."""
    owner = name.split(":")
    return len(owner) != 3 or "~" in name or Owner(*owner).comment() in comments


def _restore_of(path: str, networks: Collection[str] | None, dry_run: bool, tables: Tables) -> Iterator[Lost]:
    record = _read(path)
    if record is None or (networks is not None and record["network"] not in networks):
        return
    words = (record["containerID"], record["ifname"], record["network"])
    for what, add in _lost(record, path.split("/")[-2], tables):
        if dry_run:
            yield Lost(*words, what, WOULD_RESTORE)
            continue
        try:
            yield Lost(*words, what, _add_locked(path, record, what, add))
        except (CniError, OSError) as error:
            note(f"{what} of {' '.join(words)} not restored: {error}")
            yield Lost(*words, what, FAILED, str(error))


def _add_locked(path: str, record: dict[str, Any], what: str, add: Callable[[], object]) -> str:
    """Add the rules under the locks, if the attachment still exists. Returns: the outcome. Raises: CniError."""
    conf = {"name": record["network"]}
    call = Call(verb="ADD", plugin="bridge", container_id=record["containerID"], ifname=record["ifname"], conf=conf)
    try:
        with AttachmentLock(call, waits=False), NetworkLock(call, waits=False):
            if _read(path) != record:  # a DEL or GC has ended, or a new ADD, whose rules are there
                return BUSY
            note(f"{what} of container {record['containerID']}, {record['ifname']}, network {record['network']} was missing")
            add()
            return RESTORED
    except BlockingIOError:
        return BUSY


def _read(path: str) -> dict[str, Any] | None:
    """Return the record of an attachment whose sandbox exists."""
    try:
        record = config.decode(files.read(path), path)
    except (CniError, OSError):
        return None
    is_whole = all(isinstance(record.get(key), str) for key in ("containerID", "ifname", "network", "netns"))
    return record if is_whole and attachments.is_of_live_sandbox(record) else None


def _lost(record: dict[str, Any], kept_by: str, tables: Tables) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what is missing, in words, with the function that adds it; ``kept_by``: the directory of the record."""
    owner = Owner(record["containerID"], record["ifname"], record["network"])
    for look in _OWN.get(kept_by, (_lost_masquerade, _lost_mac_check)):
        try:
            found = look(owner, record, tables)
        except _DAMAGED as error:
            note(f"rules of {owner} not compared: {type(error).__name__}: {error}")
            continue
        if found is not None:
            yield found


def _lost_masquerade(owner: Owner, record: dict[str, Any], _: Tables) -> tuple[str, Callable[[], object]] | None:
    rules = record.get("masquerade")
    if rules is None:
        return None
    addresses = [ip_interface(text) for text in rules["addresses"]]
    exclude = [ip_network(text) for text in rules["exclude"]]
    lost = masquerade.lost(owner, addresses, rules["backend"], exclude)
    if not lost:
        return None
    words = f"masquerade of {', '.join([str(address.ip) for address in lost])}"
    return words, lambda: masquerade.add(owner, lost, rules["backend"], exclude)


def _lost_mac_check(owner: Owner, record: dict[str, Any], _: Tables) -> tuple[str, Callable[[], object]] | None:
    rules = record.get("macspoofchk")
    if rules is None or not macspoof.is_lost(owner, rules["port"], rules["mac"]):
        return None
    return f"check of the MAC address {rules['mac']}", lambda: macspoof.add(owner, rules["port"], rules["mac"])


def _lost_ports(owner: Owner, record: dict[str, Any], _: Tables) -> tuple[str, Callable[[], object]] | None:
    conf = record.get("conf")
    if conf is None:
        return None
    call = _recorded_call(owner, record)
    backend, wanted = portmap.wanted_of(call)
    lost = forwarding.lost(wanted, backend)
    if not lost:
        return None
    ports = dict.fromkeys([f"{mapping.protocol} {mapping.host_port}" for mapping in lost])
    return f"host ports {', '.join(ports)}", lambda: forwarding.add(wanted.replace(mappings=lost), backend)


def _lost_forwarding(owner: Owner, record: dict[str, Any], tables: Tables) -> tuple[str, Callable[[], object]] | None:
    if record.get("conf") is None:
        return None
    call = _recorded_call(owner, record)
    plan, is_lost = firewall.lost_rules(call, tables)
    if not is_lost:
        return None
    return f"forwarding of {', '.join(map(str, plan.addresses))}", lambda: firewall.add_rules(call, plan)


def _name_of(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def _recorded_call(owner: Owner, record: dict[str, Any]) -> Call:
    return Call(
        verb="ADD", plugin="", container_id=owner.container_id, ifname=owner.ifname, netns=record["netns"], conf=record["conf"]
    )


_OWN = {_name_of(module): (look,) for module, look in ((portmap, _lost_ports), (firewall, _lost_forwarding))}
"""Directory of own records to what is in them."""
