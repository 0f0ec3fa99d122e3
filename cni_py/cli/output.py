"""Output of ``cni-py``: results on standard output, messages and errors on standard error."""

from __future__ import annotations

import os
import re
import sys

from cni_py.errors import CniError
from cni_py.journal import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNKNOWN = 3
"""Nothing wrong was found, but not everything could be asked or inspected."""


def show(text: str) -> None:
    """Print to standard output; control characters are escaped."""
    _print(text, sys.stdout)


def show_json(value: object) -> None:
    """Print JSON to standard output; control characters are escaped as JSON has it."""
    import json

    sys.stdout.write(json.dumps(value, indent=4) + "\n")


def say(text: str, head: str = "cni-py: ") -> None:
    """Print a message to standard error."""
    _print(head + text, sys.stderr)


def print_error(error: CniError) -> None:
    """Print an error: the message, then indented the details, the code and hints."""
    say(error.msg)
    lines = [("details", error.details), ("code", str(error.code) if error.code != CniError.code else ""), ("hint", error.hint)]
    if os.geteuid() != 0 and any(word in str(error).lower() for word in ("not permitted", "permission denied")):
        lines.append(
            (
                "hint",
                'cni-py and the plugins must be run as root: try "sudo -E cni-py ..." (-E keeps CNI_PATH and other variables)',
            )
        )
    for label, text in lines:
        if text:
            say(f"{label}: {as_typed(text) if label == 'hint' else text}".replace("\n", "\n    "), "  ")


def as_typed(text: str) -> str:
    """Return a hint with ``cni-py`` as it was typed: a checkout or an installation need not be in PATH."""
    from shutil import which

    program = sys.argv[0]
    if not program.endswith("/cni-py") or which("cni-py"):
        return text
    return re.sub(r"(^|[\s\"])cni-py(?= [a-z])", lambda found: f"{found[1]}{program}", text)


def _print(text: str, stream: TextIO) -> None:
    stream.write("\n".join(map(printable, text.split("\n"))) + "\n")
