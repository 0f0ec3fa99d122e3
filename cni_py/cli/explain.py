"""Finds and prints the journals of attachments, for ``cni-py explain``.

Reads ``/run/cni-py/journal``, which journal.py writes: a file
``<container id>:<ifname>:<network>`` per attachment, in ``deleted/`` those of deleted attachments.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime

from cni_py import files, journal
from cni_py.errors import CniError, IOFailure
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_BYTES = 4 << 20
SHOWN_ID = 120
"""Longer container ids are truncated in the file's name (attachment/record.py, ``name_of``)."""


class Entry(Value):
    """Journal of one attachment; ``changed`` in seconds since 1970."""

    container_id: str
    ifname: str
    network: str
    path: str
    deleted: bool
    changed: float

    @property
    def state(self) -> str:
        return "deleted" if self.deleted else "live"

    @property
    def date(self) -> str:
        return datetime.fromtimestamp(self.changed, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def entries() -> list[Entry]:
    """Return every journal, sorted by the last change. Raises: IOFailure."""
    found = [*_directory(journal.JOURNAL_DIR, deleted=False), *_directory(f"{journal.JOURNAL_DIR}/deleted", deleted=True)]
    return sorted(found, key=lambda entry: entry.changed)


def select(all_entries: Sequence[Entry], container_id: str, ifname: str = "", network: str = "") -> list[Entry]:
    """Return the journals of one container, named by its id or a prefix of it.

    Raises: CniError if no container or more than one matches; its hint lists the candidates.
    """
    fitting = [e for e in all_entries if ifname in ("", e.ifname) and network in ("", e.network)]
    wanted = container_id[:SHOWN_ID]
    exact = [e for e in fitting if e.container_id == wanted]
    found = exact or [e for e in fitting if e.container_id.startswith(wanted)]
    candidates = sorted({e.container_id for e in found})
    if len(candidates) > 1:
        raise CniError(
            f'container id "{container_id}" is ambiguous: it is a prefix of {len(candidates)}',
            hint=f"one of {_some(candidates)}",
        )
    if not found:
        known = sorted({e.container_id for e in all_entries})
        hint = f"journals exist for {_some(known)}" if known else "no plugin of cni-py has changed anything since the last boot"
        raise CniError(f'no journal for attachment "{container_id}"', hint=hint)
    return found


def render_list(all_entries: Sequence[Entry]) -> Iterator[str]:
    """Format a table of attachments."""
    rows = [("LAST CHANGE", "STATE", "CONTAINER ID", "INTERFACE", "NETWORK")]
    rows += [(e.date, e.state, e.container_id, e.ifname, e.network) for e in all_entries]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def render_journal(entry: Entry) -> Iterator[str]:
    """Yield a heading and the lines of the file; empty if the journal was deleted in the meantime."""
    yield f"== {entry.container_id} {entry.ifname}, network {entry.network} ({entry.state}, last change {entry.date})"
    try:
        yield from files.read(entry.path, MAX_BYTES).decode(errors="replace").removesuffix("\n").split("\n")
    except FileNotFoundError:
        return
    except OSError as error:
        raise IOFailure(f'could not read "{entry.path}"', error.strerror or "", errno=error.errno or 0) from error


def _directory(directory: str, *, deleted: bool) -> Iterator[Entry]:
    try:
        with os.scandir(directory) as files_there:
            for file in files_there:
                parts = file.name.split(":")
                if len(parts) == 3 and file.is_file(follow_symlinks=False):
                    container_id, ifname, network = parts
                    yield Entry(container_id, ifname, network, file.path, deleted, file.stat().st_mtime)
    except FileNotFoundError:
        return
    except OSError as error:
        raise IOFailure(f'could not read "{directory}"', error.strerror or "", errno=error.errno or 0) from error


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
