"""Attachments of this node, from everything that names one, for ``cni-py explain`` and ``check``. Changes nothing.

Sources: libcni's cached results, our records, journals, and the reservations of host-local. :func:`select` finds one by what
an engineer on call has: a container id or its beginning, a pod's name, a network namespace, an address.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from ipaddress import ip_address, ip_interface

from cni_py import config, files
from cni_py.attachment import record
from cni_py.cli import journals
from cni_py.cli.journals import Entry
from cni_py.errors import CniError
from cni_py.ipam.store import parse_owner, reserved_names
from cni_py.plural import counted
from cni_py.runtime.result_cache import CACHE_DIR, read_cache
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Any

    Key = tuple[str, str, str]

LIVE, FAILED, GONE, DELETED, UNKNOWN = "live", "failed", "gone", "deleted", "unknown"
RESERVATIONS = "/var/lib/cni/networks"
SHOWN_ID = 120
"""Longer container ids are truncated in the journal's file name (attachment/record.py, ``name_of``)."""


class Known(Value):
    """An attachment.

    Attributes:
        pod: ``namespace/name``, if a runtime of Kubernetes attached it.
        inode: of the namespace, if a record has it.
        is_cached: a runtime has the result of a successful ADD.
        changed: the last change of its files, in seconds since 1970.
    """

    container_id: str
    ifname: str
    network: str
    netns: str = ""
    pod: str = ""
    addresses: tuple[str, ...] = ()
    inode: int = 0
    is_cached: bool = False
    changed: float = 0.0
    journal: Entry | None = None

    @property
    def state(self) -> str:
        """Return whether the attachment is live, or why it is not.

        *failed*: its last call failed, and no runtime has a result. *gone*: its namespace no longer exists, and DEL has not
        been called. *deleted*: DEL has succeeded.
        """
        if self.journal and self.journal.deleted and not self.is_cached:
            return DELETED
        failed = self.journal.failed_verb if self.journal else ""
        if failed == "DEL" or (failed and not self.is_cached):
            return FAILED
        exists = self.has_namespace
        return UNKNOWN if exists is None else LIVE if exists else GONE

    @property
    def has_namespace(self) -> bool | None:
        """Return whether its network namespace exists; None: unknown."""
        if not self.netns:
            return None
        try:
            status = os.stat(self.netns)
        except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
            return False
        except OSError:
            return None
        return self.inode in (0, status.st_ino)

    @property
    def error(self) -> str:
        """The error of the last call that failed, "" if a later one succeeded."""
        return self.journal.error if self.journal else ""

    def as_json(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "containerID": self.container_id,
            "ifname": self.ifname,
            "network": self.network,
            "netns": self.netns,
            "pod": self.pod,
            "addresses": list(self.addresses),
            "lastChange": date_of(self.changed),
            "error": self.error,
        }


def known(cache_dir: str = CACHE_DIR) -> list[Known]:
    """Return every attachment that something names, sorted by the last change. Raises: IOFailure."""
    found: dict[Key, Known] = {}
    reserved = _reservations()
    for one in [*_journals(), *_records(), *_cached(cache_dir)]:
        key = (one.container_id[:SHOWN_ID], one.ifname, one.network.partition("~")[0][:60])
        found[key] = _merged(found[key], one) if key in found else one
    complete = [
        one if one.addresses else one.replace(addresses=tuple(reserved.get((one.network, one.container_id, one.ifname), ())))
        for one in found.values()
    ]
    return sorted(complete, key=lambda one: one.changed)


def _merged(one: Known, other: Known) -> Known:
    return Known(
        container_id=max(one.container_id, other.container_id, key=len),
        ifname=one.ifname,
        network=other.network if "~" in one.network else one.network,
        netns=other.netns or one.netns,
        pod=other.pod or one.pod,
        addresses=other.addresses or one.addresses,
        inode=other.inode or one.inode,
        is_cached=one.is_cached or other.is_cached,
        changed=max(one.changed, other.changed),
        journal=one.journal or other.journal,
    )


def _journals() -> Iterator[Known]:
    for entry in journals.entries():
        yield Known(entry.container_id, entry.ifname, entry.network, entry.netns, changed=entry.changed, journal=entry)


def _records() -> Iterator[Known]:
    for name in files.list_directory(record.DIRECTORY):
        path = f"{record.DIRECTORY}/{name}"
        try:
            raw = config.decode(files.read(path), path)
        except (OSError, CniError):
            continue
        texts = [raw.get(key) for key in ("containerID", "ifname", "network", "netns")]
        if all(isinstance(text, str) and text for text in texts):
            container_id, ifname, network, netns = map(str, texts)
            known = Known(container_id, ifname, network, netns, _pod_of(raw.get("args")), changed=files.changed_at(path) / 1e9)
            yield known.replace(inode=raw["ino"]) if isinstance(raw.get("ino"), int) else known


def _cached(cache_dir: str) -> Iterator[Known]:
    directory = f"{cache_dir}/results"
    for name in files.list_directory(directory):
        path = f"{directory}/{name}"
        try:
            cached = read_cache(path)
        except (OSError, CniError):
            continue
        of = cached.attachment
        known = Known(of.container_id, of.ifname, cached.network, of.netns, _pod_of(of.args), _addresses_in(cached.result))
        yield known.replace(is_cached=True, changed=files.changed_at(path) / 1e9)


def _reservations() -> dict[Key, list[str]]:
    found: dict[Key, list[str]] = {}
    for network in files.list_directory(RESERVATIONS):
        directory = f"{RESERVATIONS}/{network}"
        for address in reserved_names(directory):
            try:
                owner = parse_owner(files.read(f"{directory}/{address}"))
            except (OSError, CniError):
                continue
            if owner:
                found.setdefault((network, *owner), []).append(address)
    return found


def _pod_of(args: object) -> str:
    """Return ``namespace/name`` from CNI_ARGS of a runtime of Kubernetes."""
    try:
        pairs: dict[object, object] = dict(args)  # type: ignore[call-overload]
    except (TypeError, ValueError):
        return ""
    words = [str(pairs[key]) for key in ("K8S_POD_NAMESPACE", "K8S_POD_NAME") if pairs.get(key)]
    return "/".join(words)


def _addresses_in(result: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the addresses of a result in any version, without prefix lengths."""
    raw = result or {}
    ips = raw.get("ips")
    texts = [ip.get("address") for ip in ips if isinstance(ip, dict)] if isinstance(ips, list) else []
    texts += [raw[key].get("ip") for key in ("ip4", "ip6") if isinstance(raw.get(key), dict)]
    found = []
    for text in texts:
        try:
            found.append(str(ip_interface(str(text)).ip))
        except ValueError:
            continue
    return tuple(found)


# ---- one of them ------------------------------------------------------------------------------


def select(all_known: Sequence[Known], word: str, ifname: str = "", network: str = "") -> list[Known]:
    """Return the attachments of one container, named by its id, a beginning of it, a pod, a namespace or an address.

    A name that several containers have had means those that are live, or else the last one.

    Raises: CniError if nothing matches, or the beginning of more than one id; its hint lists the candidates.
    """
    fitting = [one for one in all_known if ifname in ("", one.ifname) and network in ("", one.network)]
    wanted = word[:SHOWN_ID]
    found = [one for one in fitting if one.container_id[:SHOWN_ID] == wanted]
    if not found:
        found = _newest([one for one in fitting if word in names_of(one)])
    if not found and word:
        found = [one for one in fitting if one.container_id.startswith(wanted)]
        ids = sorted({one.container_id for one in found})
        if len(ids) > 1:
            raise CniError(
                f'container id "{word}" is ambiguous: it is the beginning of {len(ids)}', hint=f"one of {_some(ids)}"
            )
    if not found:
        hint = "list them: cni-py explain" if all_known else "no plugin has attached anything since the last boot"
        raise CniError(f'no attachment "{word}"', "it is no container id, pod, network namespace or address", hint)
    return found


def names_of(one: Known) -> set[str]:
    """Return every name of the attachment but its container id."""
    path = one.netns.removeprefix("/var") if one.netns.startswith("/var/run/") else one.netns
    name = path.removeprefix("/run/netns/")
    return {path, f"/var{path}", name, one.pod, one.pod.rpartition("/")[2], *one.addresses} - {"", "/var"}


def _newest(found: Sequence[Known]) -> list[Known]:
    """Return those that are live; if none is, those of the container that changed last."""
    live = [one for one in found if one.state == LIVE]
    last = max(found, key=lambda one: one.changed).container_id if found else ""
    return live or [one for one in found if one.container_id == last]


def as_address(word: str) -> str:
    """Return an address in its canonical form, and any other word unchanged."""
    try:
        return str(ip_address(word.partition("/")[0]))
    except ValueError:
        return word


# ---- for people -------------------------------------------------------------------------------


def render_list(found: Iterable[Known]) -> Iterator[str]:
    """Yield two or three lines for each attachment, and how many there are; at most 80 columns, unless a name is longer."""
    from textwrap import wrap

    counts: dict[str, int] = {}
    for one in found:
        state = one.state
        counts[state] = counts.get(state, 0) + 1
        heading = " ".join([one.pod or one.netns or "-", *one.addresses])
        yield f"{state:8} {heading}"
        about = f"container {one.container_id}, {one.ifname}, network {one.network}, {date_of(one.changed)}"
        lines = wrap(about, 71, break_long_words=False, break_on_hyphens=False)
        if one.error:
            lines += wrap(f"error: {one.error}", 71, break_long_words=False, break_on_hyphens=False)
        yield from (f"{'':8} {line}" for line in lines)
    total = counted(sum(counts.values()), "attachment")
    yield f"{total}: {', '.join(f'{number} {state}' for state, number in counts.items())}" if counts else "no attachments"


def render_heading(one: Known) -> Iterator[str]:
    """Yield what an attachment is called, its state, and its other names."""
    yield f"== {one.container_id} {one.ifname}, network {one.network} ({one.state}, last change {date_of(one.changed)})"
    names = " ".join(filter(None, (one.pod, one.netns, *one.addresses)))
    if names:
        yield f"== {names}"


def date_of(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
