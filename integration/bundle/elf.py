"""Write the path of its loader into a program. Standard library only: the installed bundle does it on the host.

Owns: the field PT_INTERP, which is padded when the bundle is built, so that any path of up to ROOM - 1 bytes fits.
Source: elf(5); load_elf_binary() in the kernel, which wants a path that ends with a NUL and asks for no other length.
"""

from __future__ import annotations

import struct
from pathlib import Path

ROOM = 256
"""Bytes of the field. A first line (#!) may be shorter than that on old kernels: 127 bytes until Linux 5.1."""
PLACEHOLDER = "/" + "x" * (ROOM - 2)
_PT_INTERP = 3


class NotElf(ValueError):
    """Error: the file is no ELF program of 64 bits, little endian, with a loader."""


def field_of(data: bytes) -> tuple[int, int]:
    """Return offset and size of the field with the loader's path. Raises: NotElf."""
    if data[:6] != b"\x7fELF\x02\x01" or len(data) < 64:
        raise NotElf("not an ELF file of 64 bits, little endian")
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for at in range(table, table + size * count, size):
        kind, _flags, offset, _address, _physical, length = struct.unpack_from("<IIQQQQ", data, at)
        if kind == _PT_INTERP:
            return offset, length
    raise NotElf("the program has no loader")


def loader_of(data: bytes) -> str:
    """Return the loader that a program names."""
    offset, size = field_of(data)
    return data[offset : offset + size].rstrip(b"\0").decode()


def with_loader(data: bytes, loader: str) -> bytes:
    """Return the program with another loader, every other byte as before. Raises: NotElf; ValueError if it does not fit."""
    offset, size = field_of(data)
    name = loader.encode()
    if len(name) >= size:
        raise ValueError(f"loader path too long: {loader} has {len(name)} bytes, {size - 1} fit")
    return data[:offset] + name.ljust(size, b"\0") + data[offset + size :]


def set_loader(program: Path, loader: str) -> None:
    """Replace a program, which may be running, by one with this loader."""
    new = program.with_name(f".{program.name}.new")
    new.write_bytes(with_loader(program.read_bytes(), loader))
    new.chmod(0o755)
    new.replace(program)
