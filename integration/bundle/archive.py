"""Write tar archives that are the same, byte for byte, whenever the files are the same.

Owns: order, times, owners and modes in an archive; the settings of the compression.
"""

from __future__ import annotations

import io
import lzma
import os
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
XZ = [{"id": lzma.FILTER_LZMA2, "preset": 3}]
"""One block, whatever the number of processors; preset 6 takes twice the time for a tenth less, and a larger dictionary more.
No filter for machine code: busybox cannot undo that of arm64."""


def source_date() -> int:
    """Return the time that files get: SOURCE_DATE_EPOCH, or the last commit's."""
    if "SOURCE_DATE_EPOCH" in os.environ:
        return int(os.environ["SOURCE_DATE_EPOCH"])
    command = ["git", "-C", str(ROOT), "log", "-1", "--format=%ct"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit("bundle: the time of the last commit is unknown (no git repository): set SOURCE_DATE_EPOCH")
    return int(done.stdout)


def entry(name: str, mode: int, date: int) -> tarfile.TarInfo:
    """Return an entry of root's; the rest is the caller's."""
    info = tarfile.TarInfo(name)
    info.mode, info.mtime = mode, date
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    return info


def add_tree(archive: tarfile.TarFile, directory: Path, name: str, date: int) -> None:
    """Add a directory and everything in it under a name, sorted."""
    for path in [directory, *sorted(directory.rglob("*"))]:
        inside = "/".join(part for part in (name, *path.relative_to(directory).parts) if part)
        if inside:
            add_path(archive, path, inside, date)


def add_path(archive: tarfile.TarFile, path: Path, name: str, date: int) -> None:
    """Add one file, link or directory; of its mode only whether it can be executed."""
    info = entry(name, 0o755, date)
    if path.is_symlink():
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, os.readlink(path), 0o777
        archive.addfile(info)
    elif path.is_dir():
        info.type = tarfile.DIRTYPE
        archive.addfile(info)
    else:
        data = path.read_bytes()
        info.size, info.mode = len(data), 0o755 if path.stat().st_mode & 0o100 else 0o644
        archive.addfile(info, io.BytesIO(data))


def tar(file: IO[bytes], trees: Iterable[tuple[Path, str]], date: int) -> None:
    """Write trees, each under a name, into one uncompressed archive."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for directory, name in trees:
            add_tree(archive, directory, name, date)


def write_xz(path: Path, directory: Path, name: str, date: int) -> None:
    """Write `directory` as path, a .tar.xz whose one top directory is `name`."""
    new = path.with_name(f".{path.name}.new")
    with lzma.open(new, "wb", format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, filters=XZ) as file:
        tar(file, [(directory, name)], date)
    new.replace(path)
