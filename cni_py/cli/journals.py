"""Journals of attachments, as ``cni-py explain`` reads them.

In ``/run/cni-py/journal``, which journal.py writes, there is a file ``<container id>:<ifname>:<network>`` per attachment,
in ``deleted/`` those of deleted attachments.
"""

from __future__ import annotations

import os
import re

from cni_py import files, journal
from cni_py.errors import IOFailure
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BYTES = 4 << 20
_CALL = re.compile(r"# \S+Z (ADD|DEL|GC) (\S+), network .*, container \S+, \S+ in (\S+)")
_END = re.compile(r"[\d:.]+  # (done|failed: (.*))  \([\d.]+ ms\)")


class Entry(Value):
    """Journal of one attachment; ``changed`` in seconds since 1970.

    Attributes:
        netns: the path that the last call named.
        failed_verb: the verb of the last call, if it failed. A plugin's second ADD, which is refused, changes nothing.
        error: of the last ADD or DEL that failed, and was not followed by one that succeeded.
    """

    container_id: str
    ifname: str
    network: str
    path: str
    deleted: bool
    changed: float
    netns: str = ""
    failed_verb: str = ""
    error: str = ""


def entries() -> list[Entry]:
    """Return every journal, sorted by the last change. Raises: IOFailure."""
    found = [*_directory(journal.JOURNAL_DIR, deleted=False), *_directory(f"{journal.JOURNAL_DIR}/deleted", deleted=True)]
    return sorted(found, key=lambda entry: entry.changed)


def of_node() -> list[str]:
    """Return the names of the journals that belong to no single attachment: sweeps, restored rules, GC of a network."""
    names = files.list_directory(journal.JOURNAL_DIR)
    return [name for name in names if name in ("sweep", "repair") or (name.startswith("gc:") and name.count(":") == 1)]


def lines_of(entry: Entry) -> list[str]:
    """Return the lines of a journal; none if it was deleted in the meantime. Raises: IOFailure."""
    try:
        return read_lines(entry.path)
    except FileNotFoundError:
        return []


def read_lines(path: str) -> list[str]:
    """Return the lines of a file; a control character in a name ends none. Raises: FileNotFoundError, IOFailure."""
    try:
        lines = files.read(path, MAX_BYTES).decode(errors="replace").split("\n")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise IOFailure(f'could not read "{path}"', error.strerror or "", errno=error.errno or 0) from error
    return lines if lines[-1] else lines[:-1]


def with_outcome(entry: Entry) -> Entry:
    """Complete the entry with what its last calls were, and how they ended."""
    verb = plugin = netns = failed = error = ""
    added: set[str] = set()
    for line in lines_of(entry):
        if call := _CALL.fullmatch(line):
            verb, plugin = call[1], call[2]
            netns = netns if call[3] == "-" else call[3]
            failed = ""
        elif end := _END.fullmatch(line):
            is_refused_again = verb == "ADD" and plugin in added
            failed = verb if end[2] and not is_refused_again else ""
            if not end[2]:
                (added.add if verb == "ADD" else added.discard)(plugin)
            if verb in ("ADD", "DEL"):
                # a DEL after a failed ADD cleans up: why the pod has no network is still the error of ADD
                error = end[2] or (error if verb == "DEL" else "")
    return entry.replace(netns=netns, failed_verb=failed, error=error)


def _directory(directory: str, *, deleted: bool) -> Iterator[Entry]:
    try:
        with os.scandir(directory) as files_there:
            for file in files_there:
                parts = file.name.split(":")
                if len(parts) == 3 and file.is_file(follow_symlinks=False):
                    container_id, ifname, network = parts
                    entry = Entry(container_id, ifname, network, file.path, deleted, file.stat().st_mtime)
                    yield with_outcome(entry)
    except FileNotFoundError:
        return
    except OSError as error:
        raise IOFailure(f'could not read "{directory}"', error.strerror or "", errno=error.errno or 0) from error
