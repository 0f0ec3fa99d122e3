"""What ``cni-py`` prints: results on standard output, remarks and errors on standard error."""

from __future__ import annotations

import os
import sys

from cni_py.errors import CniError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

EXIT_FAILED = 1


def show(text: str) -> None:
    """Print to standard output; control characters are shown, never sent."""
    _print(text, sys.stdout)


def say(text: str, head: str = "cni-py: ") -> None:
    """A remark on standard error."""
    _print(head + text, sys.stderr)


def tell(error: CniError) -> None:
    """An error: what failed, then in lines of their own the code, the details and what to do."""
    say(error.msg)
    lines = [("details", error.details), ("code", str(error.code) if error.code != CniError.code else ""), ("hint", error.hint)]
    if os.geteuid() != 0 and any(word in str(error).lower() for word in ("not permitted", "permission denied")):
        lines.append(("hint", 'cni-py and the plugins need root: try "sudo -E cni-py ..." (-E keeps CNI_PATH and the like)'))
    for label, text in lines:
        if text:
            say(f"{label}: {text}".replace("\n", "\n    "), "  ")


def printable(text: str) -> str:
    r"""The text with control characters, and what is no text, as ``\x1b``; new lines stay."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _print(text: str, stream: TextIO) -> None:
    stream.write(printable(text) + "\n")
