"""``cni-py doctor --bundle FILE.tar.gz``: what another person needs to look into it, without secrets.

    report.txt report.json     the findings
    facts.json                 what they were derived from
    versions.txt               this installation, kernel, libraries, plugins
    commands/                  ip, bridge, nft, iptables-save, ss: as the programs print it
    files/                     network configurations, subnet.env, what flanneld saved, its environment file
    journals/                  journals of cni-py, and what systemd keeps of flanneld and the agent

Every text passes redact.py, after the secrets of all of them were collected. Written at once, readable by root alone.
"""

from __future__ import annotations

import dataclasses
import io
import os
import tarfile
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from cni_py import files, journal, program
from cni_py.doctor import gather_processes, text
from cni_py.doctor.redact import Redactor
from cni_py.errors import CniError, IOFailure
from cni_py.flanneld.subnet_file import journal_path
from cni_py.jsontext import encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from cni_py.doctor.facts import Facts
    from cni_py.doctor.findings import Report

MAX_BYTES = 4 << 20
"""Limit of one file or the output of one command: the end is kept."""
_COMMANDS = (
    ("ip", "-d", "-s", "link"),
    ("ip", "addr"),
    ("ip", "rule"),
    ("ip", "route", "show", "table", "all"),
    ("ip", "-6", "route", "show", "table", "all"),
    ("ip", "neigh"),
    ("bridge", "fdb"),
    ("bridge", "link"),
    ("nft", "list", "ruleset"),
    ("ss", "-ulnp"),
    ("sysctl", "net.ipv4", "net.ipv6", "net.bridge", "net.netfilter"),
    ("df", "-h"),
    ("mount",),
    ("uname", "-a"),
    ("systemctl", "--no-pager", "status", "flanneld", "cni-agent", "containerd"),
    ("journalctl", "--no-pager", "-n", "2000", "-u", "flanneld"),
    ("journalctl", "--no-pager", "-n", "2000", "-u", "cni-agent"),
    ("journalctl", "--no-pager", "-n", "500", "-k"),
)
_ENVIRONMENT_FILES = (
    "/etc/kube-flannel/flanneld.env",
    "/etc/default/flanneld",
    "/etc/sysconfig/flanneld",
    "/run/flannel/docker",
)
_CONFIGURATIONS = ("/etc/kube-flannel/net-conf.json", "/etc/kube-flannel/cni-conf.json")
_SECRET_FILES = ("/run/flannel/wgkey", "/var/run/secrets/kubernetes.io/serviceaccount/token")

Member = tuple[str, str]
"""Name in the archive, and text."""


def write(path: str, facts: Facts, report: Report, versions: Iterable[tuple[str, str]]) -> list[str]:
    """Write the archive, which must not exist. Returns: the names of its members. Raises: IOFailure."""
    members = [*_of_report(facts, report, versions), *_of_commands(facts), *_of_files(facts), *_of_journals(facts)]
    redactor = Redactor(_known_secrets(facts))
    for _, content in members:
        redactor.learn(content)
    redacted = [(name, redactor.redact(content)) for name, content in members]
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, content in redacted:
                _add(archive, name, content)
    except OSError as error:
        raise IOFailure(f'could not write "{path}"', error.strerror or "", "name a file that does not exist") from error
    return [name for name, _ in redacted]


def _add(archive: tarfile.TarFile, name: str, content: str) -> None:
    data = content.encode(errors="replace")
    member = tarfile.TarInfo(f"cni-py-doctor/{name}")
    member.size, member.mode, member.mtime = len(data), 0o600, int(time.time())
    archive.addfile(member, io.BytesIO(data))


def _known_secrets(facts: Facts) -> Iterator[str]:
    """Yield the secrets that this node is known to have: of options, and the content of key files."""
    for options in filter(None, (facts.options, *(daemon.options for daemon in facts.daemons))):
        yield options.etcd_password
        for path in (options.etcd_keyfile,):
            yield from _lines_of(path)
    for daemon in facts.daemons:
        yield from _lines_of(daemon.environ.get("WIREGUARD_KEY_FILE", ""))
    for path in _SECRET_FILES:
        yield from _lines_of(path)


def _lines_of(path: str) -> Iterator[str]:
    if path:
        for line in (_read(path) or "").splitlines():
            yield "" if line.startswith("-----") else line


# ---- members ------------------------------------------------------------------------------------


def _of_report(facts: Facts, report: Report, versions: Iterable[tuple[str, str]]) -> Iterator[Member]:
    yield "report.txt", "".join(f"{line}\n" for line in text.plain(report))
    yield "report.json", encode(report.as_json()).decode()
    yield "facts.json", encode(as_json(facts)).decode()
    yield "versions.txt", "".join(f"{label}: {words}\n" for label, words in versions)


def _of_commands(facts: Facts) -> Iterator[Member]:
    for command in _COMMANDS:
        output = _output(command)
        if output is not None:
            yield f"commands/{'-'.join(word.strip('-').replace('/', '_') for word in command if word.strip('-'))}.txt", output
    for name, content in facts.saved_rules.items():
        yield f"commands/{name}-save.txt", content


def _output(command: Sequence[str]) -> str | None:
    """Return what a program of the system prints; None if it is not installed."""
    path = program.find_system(command[0])
    if path is None:
        return None
    try:
        status, output, words = program.run_captured([path, *command[1:]])
    except CniError as error:
        return f"# {' '.join(command)}: {error}\n"
    head = f"# {' '.join(command)}" + (f": {program.describe(status)}" if status else "") + "\n"
    return head + output.decode(errors="replace")[-MAX_BYTES:] + (f"# {words}\n" if words else "")


def _of_files(facts: Facts) -> Iterator[Member]:
    paths = [file.path for file in facts.conf_files]
    paths += [facts.subnet_file, facts.known.path if facts.known else "", *_ENVIRONMENT_FILES, *_CONFIGURATIONS]
    paths += gather_processes.unit_files()
    options = facts.options
    if options is not None and options.datastore:
        paths.append(options.datastore.removeprefix("file:"))
    for path in dict.fromkeys(filter(None, paths)):
        content = _read(path)
        if content is not None:
            yield f"files{path}", content
    for daemon in facts.daemons:
        lines = [f"program: {daemon.program}"]
        lines += [f"options: {daemon.options.redacted()}"] if daemon.options else []
        lines += [f"{key}={value}" for key, value in sorted(daemon.environ.items())]
        yield f"processes/flanneld-{daemon.pid}.txt", "".join(f"{line}\n" for line in lines)


def _of_journals(facts: Facts) -> Iterator[Member]:
    directories = (journal.JOURNAL_DIR, journal_path(facts.subnet_file))
    for path in directories:
        names = sorted(os.listdir(path)) if os.path.isdir(path) else [""]
        for name in names:
            content = _read(f"{path}/{name}" if name else path)
            if content is not None:
                yield f"journals/{os.path.basename(path)}{'/' if name else ''}{name}", content


def _read(path: str) -> str | None:
    """Return the end of a file; None if it does not exist or cannot be read."""
    with suppress(OSError, CniError):
        return files.read(path, 64 << 20).decode(errors="replace")[-MAX_BYTES:]
    return None


def as_json(value: Any) -> Any:
    """Return facts for programs: dataclasses and records as objects, what JSON does not have as text."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.repr}
        return {name: as_json(inner) for name, inner in named.items()}
    if isinstance(value, dict):
        return {str(key): as_json(inner) for key, inner in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((as_json(inner) for inner in value), key=str)
    if isinstance(value, list | tuple):
        return [as_json(inner) for inner in value]
    if isinstance(value, str | int | float | bool | None):
        return value
    return str(value)
