"""Reservations of one network: a file per address, identical to those of Go's host-local.

How it works. ``<dataDir>/<network>/<address>`` (0600) holds the container id, CR LF and the
interface name; files of old plugins hold the id alone. ``last_reserved_ip.<index of the range
set>`` holds the last allocated address. ``lock`` is held (``flock``) while any of these is read or
changed; :class:`Store` is that lock, so nothing can be done without it. Go's plugin and this one
can use the same directory concurrently.

The directory is listed and its files are read once per lock, into memory. Only a file's
text says which attachment owns it, so an ADD or a DEL costs about 3 µs per reservation of the network; the size
of the ranges costs nothing. A process that handles many calls caches what it read (:func:`keep_between_calls`)
and detects created and deleted files by the directory's mtime. It sets that mtime
itself when it unlocks, to the nanosecond, because the kernel's coarse clock would give the same time to a
change that another process makes a millisecond later. Texts that a decision depends on are read again.

Damage: a file that is empty or whose text is not a reservation (a crash between
creating and writing it) is free, and reused by the next attachment that tries its address. A file that cannot be
read, or is not a regular file, is never allocated and never touched. A damaged
``last_reserved_ip`` restarts the round. All of this is noted in the journal.

Source: plugins/ipam/host-local/backend/disk/backend.go of containernetworking/plugins.
"""

from __future__ import annotations

import posix
from errno import EEXIST, ENOENT, ENOTDIR
from time import time_ns

from cni_py import files
from cni_py.errors import IOFailure
from cni_py.ipam.ranges import as_address
from cni_py.journal import note, quote, step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from ipaddress import IPv4Address, IPv6Address
    from types import TracebackType

    Address = IPv4Address | IPv6Address
    Owner = tuple[str, str]

DIRECTORY_MODE = 0o755
MAX_BYTES = 4096
"""Maximum bytes to read of a reservation: an id and a name fit many times over."""
_LETTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_ID_BYTES = _LETTERS + b"_.-"
_NO_IFNAME_BYTES = bytes(range(0x21)) + b"/:\x7f"
_ADDRESS_BEGINS = frozenset("0123456789abcdef:")
_READ = posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW | posix.O_NONBLOCK  # a FIFO must not block us
_CREATE = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC | posix.O_NOFOLLOW
Stamp = tuple[int, int, int]
"""Device, inode and mtime of a directory."""
_kept: dict[str, tuple[Stamp, dict[str, bytes | None]]] | None = None
_MAX_KEPT = 64
_REPLACE = posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_CLOEXEC | posix.O_NOFOLLOW | posix.O_NONBLOCK


class Store:
    """Reservations of a network, locked: ``with Store(data_dir, network) as store:``.

    Args:
        data_dir: absolute path, checked by the caller.
        network: the network's name, checked by the caller.
        create: create the directory; otherwise a missing one holds nothing.
    """

    def __init__(self, data_dir: str, network: str, create: bool = False) -> None:
        self.directory = f"{data_dir}/{network}"
        self._create = create
        self._lock: files.Lock | None = None
        self._texts: dict[str, bytes | None] = {}
        self._is_complete = self._is_recalled = False

    def __enter__(self) -> Store:
        """Lock the store and read it. Raises: IOFailure."""
        if self._create:
            try:
                files.make_directory(self.directory, DIRECTORY_MODE)
            except OSError as error:
                raise IOFailure(f'could not create "{self.directory}"', error.strerror or "", errno=error.errno or 0) from error
        lock = files.Lock(f"{self.directory}/lock")
        try:
            lock.__enter__()
        except IOFailure as error:
            if self._create or error.errno not in (ENOENT, ENOTDIR):
                raise
            self._lock, self._texts, self._is_complete = None, {}, True
        else:
            self._lock, self._texts, self._is_complete = lock, {}, False
            self._recall()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._lock is not None:
            self._keep(error is None)
            self._lock.__exit__(kind, error, trace)

    def _recall(self) -> None:
        """Load what an earlier call of this process read, if no file was created or deleted since."""
        kept = _kept.pop(self.directory, None) if _kept is not None else None
        self._is_recalled = kept is not None and kept[0] == _stamp_of(self.directory)
        if kept and self._is_recalled:
            self._texts, self._is_complete = kept[1], True

    def _keep(self, is_certain: bool) -> None:
        """Cache what is known of all files for the next call, under an mtime that no other process's change has."""
        if _kept is None or not (is_certain and self._is_complete):
            return
        now = time_ns()
        try:
            posix.utime(self.directory, ns=(now, now))
        except OSError:  # it became read-only: the next call reads it
            return
        stamp = _stamp_of(self.directory)
        if stamp and stamp[2] == now:  # a file system may store whole seconds only
            if len(_kept) >= _MAX_KEPT:
                _kept.clear()
            _kept[self.directory] = stamp, self._texts

    def held_by(self, container_id: str, ifname: str) -> list[Address]:
        """Return the addresses of an attachment; if it has none, those of files with its container's id alone."""
        texts = [(name, text.strip()) for name, text in self._scan().items() if text]
        for wanted in (_text_of(container_id, ifname), _text_of(container_id, "")):
            names = [name for name, text in texts if text == wanted and self._is_unchanged(name, wanted)]
            if found := _addresses(names):
                return found
        return []

    def owner_of(self, address: Address) -> Owner | None:
        """Return container id and interface name ("" in an old file) of the owner of the address."""
        text = self._texts[str(address)] if self._exists(str(address)) else None
        return None if text is None else parse_owner(text)

    def is_free(self, address: Address) -> bool:
        """Return whether the address is not reserved; a damaged file reserves nothing."""
        name = str(address)
        return not self._exists(name) or self._is_damaged(name)

    def reservations(self) -> Iterator[tuple[Address, Owner | None]]:
        """Yield every address with a file, and its owner; ``None`` if the file is damaged."""
        if self._is_recalled:
            self._texts, self._is_complete, self._is_recalled = {}, False, False
        for name, text in list(self._scan().items()):
            for address in _addresses([name]):
                owner = None if text is None else parse_owner(text)
                if owner is not None or self._is_damaged(name):
                    yield address, owner

    def reserve(self, address: Address, container_id: str, ifname: str, range_set: int) -> bool:
        """Reserve the address for the attachment; returns False if it is not free.

        Raises: IOFailure; the reservation is removed then.
        """
        if not self.is_free(address):
            return False
        name, text = str(address), _text_of(container_id, ifname)
        path = f"{self.directory}/{name}"
        if name in self._texts:
            files.remove(path)
        try:
            with _write_step(text, path):
                _create_file(path, text)
        except IOFailure as error:
            if error.errno != EEXIST:  # another process that takes no lock created it first
                raise
            self._texts[name] = None
            return False
        self._texts[name] = text
        self._write_last_reserved(range_set, name)
        return True

    def release(self, addresses: Iterable[Address]) -> None:
        """Release the addresses, continuing after failures. Raises: IOFailure, naming what is left."""
        failures: dict[str, IOFailure] = {}
        for name in map(str, addresses):
            try:
                files.remove(f"{self.directory}/{name}")
            except IOFailure as error:
                failures[name] = error
            else:
                self._texts.pop(name, None)
        if failures:
            first = next(iter(failures.values()))
            msg = f'could not release {", ".join(failures)} in "{self.directory}"'
            raise IOFailure(msg, f"{first.msg}: {first.details}", f"see ls -l {self.directory}", first.errno)

    def last_reserved(self, range_set: int) -> Address | None:
        """Return the last allocated address of a range set, if it is known."""
        path = self._last_reserved_path(range_set)
        try:
            text = _read(path)
        except FileNotFoundError:
            return None
        if text is None:
            return None
        address = as_address(text.decode(errors="replace").strip())
        if address is None:
            note(f"ignored {path}: invalid address {text[:40]!r}")
        return address

    def _write_last_reserved(self, range_set: int, name: str) -> None:
        """Write in place, as Go does, to keep the file's mode. A failure costs the round robin, not the pod."""
        path = self._last_reserved_path(range_set)
        try:
            with _write_step(name.encode(), path, keeps_mode=files.exists(path)):
                _write_and_close(posix.open(path, _REPLACE, 0o600), name.encode())
        except IOFailure as error:
            note(f"a recently used address may be allocated next: {error}")

    def _last_reserved_path(self, range_set: int) -> str:
        return f"{self.directory}/last_reserved_ip.{range_set}"

    def _scan(self) -> dict[str, bytes | None]:
        """Read every file that may be a reservation; ``None``: it cannot be read."""
        if not self._is_complete:
            for name in reserved_names(self.directory):
                try:
                    self._texts[name] = _read(f"{self.directory}/{name}")
                except FileNotFoundError:
                    continue
            self._is_complete = True
        return self._texts

    def _exists(self, name: str) -> bool:
        """Return whether the address has a file. A single lookup costs one file, not the directory."""
        if self._is_recalled if name in self._texts else not self._is_complete:
            try:
                self._texts[name] = _read(f"{self.directory}/{name}")
            except FileNotFoundError:
                self._texts.pop(name, None)
        return name in self._texts

    def _is_unchanged(self, name: str, wanted: bytes) -> bool:
        """Return whether a file that was read by an earlier call still has the same text."""
        return not self._is_recalled or (self._exists(name) and (self._texts[name] or b"").strip() == wanted)

    def _is_damaged(self, name: str) -> bool:
        text = self._texts[name]
        if text is None or parse_owner(text) is not None or not _is_regular(f"{self.directory}/{name}"):
            return False
        note(f"free: {self.directory}/{name} is {'damaged: ' + repr(text[:40]) if text else 'empty'}")
        return True


def keep_between_calls() -> None:
    """Cache directories in this process until another process changes them."""
    global _kept
    _kept = {}


def _stamp_of(directory: str) -> Stamp | None:
    try:
        status = posix.stat(directory)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


def reserved_names(directory: str) -> list[str]:
    """List the files that may be reservations, without the lock; empty if the directory does not exist.

    Raises: IOFailure.
    """
    try:
        names = posix.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise IOFailure(f'could not list "{directory}"', error.strerror or "", errno=error.errno or 0) from error
    return [name for name in names if name[0] in _ADDRESS_BEGINS]


def addresses_of(data_dir: str, network: str, container_id: str, ifname: str) -> list[Address]:
    """Return the addresses that an attachment holds, for callers without a :class:`Store`. Raises: IOFailure."""
    with Store(data_dir, network) as store:
        return store.held_by(container_id, ifname)


def parse_owner(text: bytes) -> Owner | None:
    """Return container id and interface name ("" in an old file) of a reservation; None if it is invalid."""
    container_id, _, ifname = text.rstrip().partition(b"\r\n")
    container_id = container_id.lstrip()
    if len(text) >= MAX_BYTES or not container_id or container_id[0] not in _LETTERS or container_id.translate(None, _ID_BYTES):
        return None
    if len(ifname) > 15 or ifname in (b".", b"..") or ifname.translate(None, _NO_IFNAME_BYTES) != ifname:
        return None
    return container_id.decode(), ifname.decode(errors="surrogateescape")


def _text_of(container_id: str, ifname: str) -> bytes:
    text = f"{container_id}\r\n{ifname}" if ifname else container_id
    return text.encode(errors="surrogateescape")


def _addresses(names: Iterable[str]) -> list[Address]:
    """Return the names that are addresses in canonical form."""
    pairs = [(name, as_address(name)) for name in names]
    return [address for name, address in pairs if address is not None and str(address) == name]


def _write_step(text: bytes, path: str, *, keeps_mode: bool = False) -> step:
    """Return the step of writing a file, as the command a person would type."""
    shown = text.decode(errors="backslashreplace").replace("\\", "\\\\").replace("%", "%%").replace("\r\n", "\\r\\n")
    change = step("printf", shown, error=IOFailure)
    change.line += f" > {quote(path)}" if keeps_mode else f" | install -m 600 /dev/stdin {quote(path)}"
    return change


def _read(path: str) -> bytes | None:
    """Return the text of a file; None if it cannot be read. Raises: FileNotFoundError."""
    try:
        fd = posix.open(path, _READ)
    except FileNotFoundError:
        raise
    except OSError as error:
        note(f"cannot read {path!r}: {error.strerror}")
        return None
    try:
        return posix.read(fd, MAX_BYTES)
    except OSError as error:
        note(f"cannot read {path!r}: {error.strerror}")
        return None
    finally:
        posix.close(fd)


def _create_file(path: str, text: bytes) -> None:
    """Create a file with its text, or nothing. Raises: OSError."""
    if files.create(path, text):
        return
    fd = posix.open(path, _CREATE, 0o600)
    try:
        _write_and_close(fd, text)
    except OSError:
        try:
            posix.unlink(path)
        except OSError as error:
            note(f"a partial reservation is left: {path}: {error.strerror}")
        raise


def _write_and_close(fd: int, text: bytes) -> None:
    """Write and close; on some file systems a full disk is reported only by close(). Raises: OSError."""
    try:
        files.write_all(fd, text)
    finally:
        posix.close(fd)


def _is_regular(path: str) -> bool:
    try:
        return posix.lstat(path).st_mode & 0o170000 == 0o100000
    except OSError:
        return False
