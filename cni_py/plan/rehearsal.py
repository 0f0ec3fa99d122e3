"""Rehearse a call of a runtime in the copy of the host: which changes it makes, and how it ends.

Plugins that are not ours write no journal: of a call in which one runs, the difference of the state is kept.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cni_py.errors import CniError
from cni_py.explain.words import WORD, unquoted
from cni_py.journal import JOURNAL_DIR, RUN_DIR, Journal
from cni_py.kernel.netns import NetNS
from cni_py.packetfilter import firewalld
from cni_py.plan import namespaces, scratch, state
from cni_py.plan.script import Named, Outcome, printing
from cni_py.plugin_table import PLUGINS
from cni_py.runtime.chain import Runtime
from cni_py.runtime.result_cache import cached_attachments

if TYPE_CHECKING:
    from cni_py.plan.scratch import Scratch
    from cni_py.runtime.network_config import Attachment, Network

STATE_DIRECTORIES = ("/var/lib/cni", "/var/lib/cni-py")
_SHOWN_BYTES = 4096
_LAUNCHER = "cni-plugin"
_RUN_NOTE = "# run /"
_WRITES = re.compile(rf"(?P<time>\d\d:\d\d:\d\d\.\d{{6}}  )install -m \d+ /dev/stdin (?P<path>{WORD})")


class NotPlannable(CniError):
    """Refusal of a plan: what the call would do depends on something that a copy cannot have."""


@dataclass(frozen=True, slots=True)
class Request:
    """A call of a runtime. ``verb``: ADD, DEL, CHECK or GC."""

    verb: str
    network: Network
    attachment: Attachment
    cni_path: Sequence[str]
    cache_dir: str


@dataclass(frozen=True, slots=True)
class Unexplained:
    """Changes of a plugin without a journal. ``lines``: of the state, with "-" for what was, "+" for what is."""

    plugin: str
    path: str
    lines: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {"plugin": self.plugin, "path": self.path, "changes": list(self.lines)}


@dataclass(slots=True)
class Rehearsal:
    """Outcome of a rehearsal.

    Attributes:
        journal: lines of it, in the order of the calls.
        errors: of ADD and DEL one at most.
        said: warnings of the runtime.
        notes: how the copy differed from the host where the call touched it.
    """

    result: dict[str, Any] | None = None
    errors: list[CniError] = field(default_factory=list)
    journal: list[str] = field(default_factory=list)
    unexplained: list[Unexplained] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    outcome: Outcome = field(default_factory=Outcome)


def rehearse(request: Request) -> Rehearsal:
    """Make the call in a copy of the host. Raises: NotPlannable; KernelRefused if there can be no copy."""
    check_plannable(request)
    known = [one.attachment.netns for one in cached_attachments(request.cache_dir)]
    try:
        originals = namespaces.read([request.attachment.netns, *known])
    except OSError as error:
        raise scratch.impossible(error) from error
    packet_filter = scratch.read_packet_filter()
    directories = [*STATE_DIRECTORIES, request.cache_dir, *_paths(request.network.plugins, of_data=True)]
    files = [*_paths(request.network.plugins, of_data=False)]
    found: Rehearsal = scratch.run(originals, packet_filter, lambda copy: _in_copy(copy, request), directories, files)
    return found


def check_plannable(request: Request) -> None:
    """Raises: NotPlannable."""
    types = set(_values(request.network.plugins, "type"))
    if "dhcp" in types:
        raise NotPlannable(
            f"no plan of {request.verb} can be made",
            '"dhcp" gets its addresses from a server, which a plan must not ask for a lease',
            "see what was done for a pod: cni-py explain",
        )
    if "firewall" in types and set(_values(request.network.plugins, "backend")) != {"iptables"} and firewalld.is_running():
        raise NotPlannable(
            f"no plan of {request.verb} can be made",
            '"firewall" lets firewalld make the rules, which is a process of the host',
            "see the zone: firewall-cmd --zone=trusted --list-sources",
        )
    for key in ("pciBusID", "kernelpath", "deviceID"):
        if any(_values([*request.network.plugins, request.attachment.capability_args], key)):
            raise NotPlannable(
                f"no plan of {request.verb} can be made",
                f'"{key}" names a device of the hardware, which no copy of the host has',
                'name the link instead, to see the same: "device": "eth1"',
            )


def _values(conf: Any, key: str) -> Iterator[Any]:
    """Yield the values of a key, at any depth."""
    if isinstance(conf, Mapping):
        yield from (value for name, value in conf.items() if name == key)
        yield from (found for value in conf.values() for found in _values(value, key))
    elif isinstance(conf, Sequence) and not isinstance(conf, str):
        yield from (found for value in conf for found in _values(value, key))


def _paths(conf: Any, *, of_data: bool) -> Iterator[str]:
    """Yield the paths in a configuration: of directories for state, or of all else."""
    if isinstance(conf, Mapping):
        for name, value in conf.items():
            if isinstance(value, str) and value.startswith("/") and (name == "dataDir") == of_data:
                yield value
            else:
                yield from _paths(value, of_data=of_data)
    elif isinstance(conf, Sequence) and not isinstance(conf, str):
        for value in conf:
            yield from _paths(value, of_data=of_data)


# ---- in the copy -------------------------------------------------------------------------------


def _in_copy(copy: Scratch, request: Request) -> Rehearsal:
    found = Rehearsal()
    journals = _Journals()

    @contextmanager
    def watch(plugin: str, path: str) -> Iterator[None]:
        before = _state(request)
        try:
            yield
        finally:
            lines = journals.new_lines()
            found.journal += lines
            if not _is_ours(path) or any(_RUN_NOTE in line for line in lines):
                found.unexplained.append(Unexplained(plugin, path, tuple(_difference(before, _state(request)))))

    runtime = Runtime(request.cni_path, request.cache_dir, say=found.said.append, watch=watch)
    title = (
        f"cni-py {request.verb.lower()} {request.network.name}: the result of ADD, which the runtime keeps for CHECK and DEL"
    )
    try:
        with Journal(title, "runtime"):
            _call(runtime, request, found)
    except CniError as error:
        found.errors.append(error)
    found.journal += journals.new_lines()
    found.outcome = Outcome(_contents(found.journal), _macs(request))
    found.journal = [_completed(line, found.outcome) for line in found.journal]
    found.notes = list(_notes(copy, found.journal))
    return found


def _call(runtime: Runtime, request: Request, found: Rehearsal) -> None:
    network, attachment = request.network, request.attachment
    if request.verb == "ADD":
        found.result = runtime.add(network, attachment)
    elif request.verb == "DEL":
        runtime.delete(network, runtime.recall(network.name, attachment))
    elif request.verb == "CHECK":
        asked = runtime.check(network, runtime.recall(network.name, attachment))
        found.errors += asked.failed
        found.said += asked.unasked
    else:
        cached = cached_attachments(request.cache_dir, network.name)
        living = [one.attachment for one in cached if one.attachment.netns and os.path.exists(one.attachment.netns)]
        found.errors += runtime.gc(network, [(one.container_id, one.ifname) for one in living])


def _is_ours(path: str) -> bool:
    real = os.path.realpath(path)
    return os.path.basename(path) in PLUGINS and (
        os.path.basename(real) == _LAUNCHER or os.path.exists(f"{os.path.dirname(real)}/{_LAUNCHER}")
    )


class _Journals:
    """The journals of the copy, which were empty when it was made."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}

    def new_lines(self) -> list[str]:
        """Return the lines that were written since the last time."""
        found: list[str] = []
        for path in sorted(Path(JOURNAL_DIR).rglob("*"), key=lambda path: path.stat().st_mtime_ns):
            if not path.is_file():
                continue
            content = path.read_bytes()
            seen = self._seen.get(path.stat().st_ino, 0)
            self._seen[path.stat().st_ino] = len(content)
            found += content[seen if seen <= len(content) else 0 :].decode(errors="replace").splitlines()
        return found


def _state(request: Request) -> list[str]:
    """Return the state of the host's copy and of the sandbox's, and the files of plugins."""
    lines = [f"host: {line}" for line in state.lines()]
    try:
        fd = os.open(request.attachment.netns, os.O_RDONLY | os.O_CLOEXEC)
        with NetNS(request.attachment.netns, fd) as netns:
            lines += [f"{request.attachment.netns}: {line}" for line in netns.run(state.lines)]
    except OSError:  # it does not exist, or is no namespace
        pass
    for directory in STATE_DIRECTORIES:
        for path in sorted(Path(directory).rglob("*")):
            if path.is_file():
                lines.append(f"file {path}: {path.read_bytes()[:_SHOWN_BYTES].decode(errors='backslashreplace')}")
    return lines


def _difference(before: list[str], after: list[str]) -> Iterator[str]:
    for line in difflib.unified_diff(before, after, lineterm="", n=0):
        if line[:1] in "-+" and line[:3] not in ("---", "+++"):
            yield line.encode("unicode_escape").decode()


def _contents(journal: list[str]) -> dict[str, bytes]:
    """Return the contents of the files that the journal names."""
    text = "\n".join(journal)
    found = {}
    for directory in (*STATE_DIRECTORIES, RUN_DIR, *{os.path.dirname(path) for path in _installed(journal)}):
        for path in Path(directory).rglob("*") if str(directory) not in ("/", "/run", "/etc") else ():
            if str(path) in text and path.is_file():
                found[str(path)] = path.read_bytes()
    return found


def _completed(line: str, outcome: Outcome) -> str:
    """Return a line of the journal with the content of the file that it writes, which is not in it where it is long."""
    found = _WRITES.match(line)
    content = outcome.contents.get(unquoted(found["path"])) if found else None
    if found is None or content is None:
        return line
    return f"{found['time']}{printing(content)} | {line[found.end('time') :]}"


def _installed(journal: list[str]) -> Iterator[str]:
    for line in journal:
        _, found, rest = line.partition("/dev/stdin /")
        if found:
            yield f"/{rest.split()[0]}"


def _macs(request: Request) -> dict[Named, str]:
    """Return the MAC addresses of the links of the host's copy and of the sandbox's."""
    from cni_py.plan import tables

    found = {("", name): mac for name, mac in tables.mac_addresses()}
    try:
        fd = os.open(request.attachment.netns, os.O_RDONLY | os.O_CLOEXEC)
        with NetNS(request.attachment.netns, fd) as netns:
            inside = netns.run(lambda: list(tables.mac_addresses()))
    except OSError:
        return found
    return found | {(request.attachment.netns, name): mac for name, mac in inside}


def _notes(copy: Scratch, journal: list[str]) -> Iterator[str]:
    """Yield in which way the copy differed where the call touched it."""
    words = {word.strip("'\"") for line in journal for word in line.split()}
    for (_, name), kind in copy.stand_ins.items():
        if name in words:
            yield f'"{name}" ({kind}) is a link of another kind in the copy: its driver may refuse what this one accepted'
    if any(" nft " in line or "tables" in line for line in journal):
        yield from (f"missing in the copy: {what}" for what in copy.missing)
