"""Make the C library's built-in paths lead nowhere, so that nothing of a host's C library is opened.

Owns: which strings of which libraries are replaced, and by what.

How it works. DT_RPATH leads to all libraries that exist. What remains are files that glibc opens by a path that is compiled
in: the loader's cache, its list of libraries to preload, its default directories, nsswitch.conf and the modules that it
names, locales, converters of character sets, modules of OpenSSL and of libxtables. A host has them for another C library,
and one of them in our process ends it, or worse. Each string is replaced by one of the same length below /dev/null, which
is no directory: opening it fails with ENOTDIR, and glibc goes on with what is built in (`files dns` for names, UTF-8 as Python
has it). Data stays: resolv.conf, hosts, passwd, localtime, certificates.

A string that is not found ends the build: a newer glibc may have it in another form.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

NOWHERE = b"/dev/null/"
TRIPLETS = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}


class Patch(NamedTuple):
    """A string and its replacement, of the same length."""

    old: bytes
    new: bytes


def away(path: str, *, whole: bool = False) -> Patch:
    """Return the patch that makes a path lead nowhere; `whole`: only where nothing follows it."""
    old = path.encode()
    new = NOWHERE + b"-" * (len(old) - len(NOWHERE))
    return Patch(old + b"\0", new + b"\0") if whole else Patch(old, new)


def moved(path: str, to: str) -> Patch:
    old = path.encode() + b"\0"
    return Patch(old, to.encode().ljust(len(old), b"\0"))


def default_directories(triplet: str) -> Patch:
    """Return the patch of the loader's list of default directories, whose lengths it knows: two are too short for NOWHERE."""
    old = [f"/lib/{triplet}/", f"/usr/lib/{triplet}/", "/lib/", "/usr/lib/"]
    new = [(NOWHERE + b"-" * len(directory))[: len(directory) - 1] + b"/" for directory in old[:2]] + [b"/dev/", b"/dev/nul/"]
    return Patch(b"\0".join(directory.encode() for directory in old), b"\0".join(new))


def patches(architecture: str) -> dict[str, list[Patch]]:
    """Return the patches by the beginning of a library's file name."""
    triplet = TRIPLETS[architecture]
    return {
        "ld-linux": [away("/etc/ld.so.cache"), away("/etc/ld.so.preload"), default_directories(triplet)],
        "libc.so": [
            away("/etc/nsswitch.co"),  # glibc has it twice, once without its last two letters
            away("/usr/lib/locale"),
            away("/usr/share/locale"),
            away(f"/usr/lib/{triplet}/gconv"),
            away("/var/run/nscd/so"),
        ],
        "libcrypto.so": [
            away("/usr/lib/ssl", whole=True),  # openssl.cnf
            away(f"/usr/lib/{triplet}/engines-3"),
            away(f"/usr/lib/{triplet}/ossl-modules"),
            moved("/usr/lib/ssl/certs", "/etc/ssl/certs"),  # Debian's is a link to it; Flatcar has this one alone
            moved("/usr/lib/ssl/cert.pem", "/etc/ssl/cert.pem"),
        ],
        "libxtables.so": [away(f"/usr/lib/{triplet}/xtables")],
    }


def isolate(directory: Path, architecture: str) -> None:
    """Patch the libraries in a directory. Raises: SystemExit, which names the string that is missing."""
    for start, wanted in patches(architecture).items():
        (library,) = [file for file in directory.iterdir() if file.name.startswith(start)]
        data = library.read_bytes()
        for patch in wanted:
            if patch.old not in data:
                raise SystemExit(
                    f"bundle: {library.name} of {architecture} has no {patch.old!r}: see integration/bundle/isolation.py"
                )
            data = data.replace(patch.old, patch.new)
        library.write_bytes(data)
