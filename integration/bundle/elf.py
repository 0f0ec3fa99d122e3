"""Write the place of a library into its interpreter. Standard library only: the installed bundle does it on the host.

Owns: two fields of an ELF program, padded when the bundle is built, so that a path of up to ROOM - 1 bytes fits: PT_INTERP,
the loader, which the kernel wants as an absolute path; and DT_RPATH, where the loader searches libraries. The latter could be
$ORIGIN, which the loader finds out through /proc; an absolute path works without it, and saves a system call.
Source: elf(5); load_elf_binary() in the kernel, which wants the first field to end with a NUL and asks for no other length.
"""

from __future__ import annotations

import struct
from pathlib import Path

ROOM = 256
PLACEHOLDER = "/" + "x" * (ROOM - 2)
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_STRTAB, _DT_RPATH = 5, 15


class NotElf(ValueError):
    """Error: the file is no ELF program of 64 bits, little endian, with a loader and a DT_RPATH."""


class Program:
    """The bytes of a program, and where its two fields are. Raises: NotElf."""

    def __init__(self, data: bytes) -> None:
        if data[:6] != b"\x7fELF\x02\x01" or len(data) < 64:
            raise NotElf("not an ELF file of 64 bits, little endian")
        self.data = bytearray(data)
        self.segments = list(self._segments())
        self.loader_at, _ = self._segment(_PT_INTERP)
        dynamic = dict(self._dynamic())
        if _DT_RPATH not in dynamic:
            raise NotElf("the program has no DT_RPATH")
        self.libraries_at = self._offset(dynamic[_DT_STRTAB]) + dynamic[_DT_RPATH]

    @property
    def loader(self) -> str:
        return self._text(self.loader_at)

    @property
    def libraries(self) -> str:
        return self._text(self.libraries_at)

    def set(self, loader: str, libraries: str) -> None:
        """Change both fields. Raises: ValueError if one does not fit."""
        for at, value in ((self.loader_at, loader), (self.libraries_at, libraries)):
            name = value.encode()
            if len(name) >= ROOM:
                raise ValueError(f"path too long: {value} has {len(name)} bytes, {ROOM - 1} fit")
            self.data[at : at + ROOM] = name.ljust(ROOM, b"\0")

    def _segments(self) -> list[tuple[int, int, int, int]]:
        """Return type, offset, address and size in the file of each segment."""
        (table,) = struct.unpack_from("<Q", self.data, 32)
        size, count = struct.unpack_from("<HH", self.data, 54)
        entries = (struct.unpack_from("<IIQQQQ", self.data, table + size * number) for number in range(count))
        return [(kind, offset, address, length) for kind, _flags, offset, address, _physical, length in entries]

    def _segment(self, wanted: int) -> tuple[int, int]:
        for kind, offset, _address, length in self.segments:
            if kind == wanted:
                return offset, length
        raise NotElf(f"the program has no segment of type {wanted}")

    def _dynamic(self) -> list[tuple[int, int]]:
        offset, length = self._segment(_PT_DYNAMIC)
        return [struct.unpack_from("<QQ", self.data, at) for at in range(offset, offset + length, 16)]

    def _offset(self, address: int) -> int:
        """Return where an address is in the file."""
        for kind, offset, start, length in self.segments:
            if kind == _PT_LOAD and start <= address < start + length:
                return offset + address - start
        raise NotElf(f"address {address:#x} is not in the file")

    def _text(self, at: int) -> str:
        return self.data[at : self.data.index(0, at)].decode()


def set_place(python: Path, loader: str, libraries: str) -> None:
    """Replace a program, which may be running, by one with this loader and this directory of libraries."""
    program = Program(python.read_bytes())
    program.set(loader, libraries)
    new = python.with_name(f".{python.name}.new")
    new.write_bytes(program.data)
    new.chmod(0o755)
    new.replace(python)
