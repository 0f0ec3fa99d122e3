"""A bundle on a host: a library with an interpreter of its own. The installer uses it.

Owns: whether a library is whole, whether a process executes it, and the loader's path in it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from integration.bundle import elf

PATH_FILE = "python._pth"
"""The interpreter reads its search path from this file, and looks for the standard library nowhere else. Without it, it
would take a host's /opt/lib/python311.zip, /lib/python311.zip or /usr/lib/python3.11."""


class Bundle:
    """A bundle's library: in the unpacked archive, in an image, or installed."""

    def __init__(self, lib: Path) -> None:
        self.lib = lib
        self.about: dict[str, Any] = json.loads((lib / "bundle.json").read_text())

    @classmethod
    def at(cls, lib: Path) -> Bundle | None:
        """Return the bundle of this library; None for a checkout, or a library that uses the system's Python."""
        try:
            return cls(lib)
        except (FileNotFoundError, NotADirectoryError):
            return None

    @property
    def name(self) -> str:
        """The library's directory, the same for the same content."""
        return f"lib-{self.about['version']}-{self.about['digest'][:6]}"

    def is_whole(self, directory: Path) -> bool:
        """Return whether a directory has every file of this bundle, by size; `bundle.json` is written last."""
        installed = Bundle.at(directory)
        return installed is not None and installed.about == self.about and all(map(installed.has, self.about["files"].items()))

    def has(self, entry: tuple[str, int]) -> bool:
        try:
            return (self.lib / entry[0]).stat().st_size == entry[1]
        except OSError:
            return False

    def copy(self, directory: Path, final: str, trial: str) -> None:
        """Create an installed library, whose path will be `final`, and test it. Raises: OSError."""
        directory.mkdir()
        for name in self.about["files"]:
            to = directory / name
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.lib / name, to)
            to.chmod(0o755 if os.access(self.lib / name, os.X_OK) else 0o644)
        for link in (path for path in (self.lib / "bin").iterdir() if path.is_symlink()):
            (directory / "bin" / link.name).symlink_to(os.readlink(link))
        for path in directory.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
        self.settle(directory, final, trial)
        shutil.copyfile(self.lib / "bundle.json", directory / "bundle.json")

    def settle(self, directory: Path, final: str, trial: str) -> None:
        """Write a library's place into it: loader, and search path of the interpreter. Raises: OSError."""
        loader = self.about["loader"]
        (directory / PATH_FILE).write_text(search_path(str(directory)))
        elf.set_place(directory / "python", f"{final}/{loader}", final)
        if self.about["machine"] == os.uname().machine:  # by its loader: `directory` may be mounted elsewhere than `final` says
            attempt([directory / loader, "--library-path", directory, directory / "python", "-ISc", trial])
        (directory / PATH_FILE).write_text(search_path(final))


def search_path(lib: str) -> str:
    """Return the interpreter's list of directories: absolute, so that a process keeps to the version that it started with."""
    return "".join(f"{lib}{directory}\n" for directory in ("/lib/python3.11", "", "/lib/python3.11/lib-dynload"))


def attempt(command: list[Path | str]) -> None:
    """Run a command. Raises: OSError with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(errno.ENOEXEC, f"the copy does not run: {done.stderr.strip()[-500:]}", str(command[0]))


def is_executed(library: Path) -> bool:
    """Return whether a process executes a library's interpreter, in whatever PID namespace or container.

    The kernel refuses to open a running program for writing. A look through /proc would miss the host's processes from
    inside a container.
    """
    python = library / "python"
    if python.is_symlink():  # the system's: always in use
        return False
    try:
        os.close(os.open(python, os.O_WRONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.ETXTBSY
    return False
