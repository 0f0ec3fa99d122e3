"""Output of ``cni-py``: results on standard output, messages and errors on standard error."""

from __future__ import annotations

import os
import re
import sys

from cni_py.errors import CniError
from cni_py.journal import printable, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TextIO

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNKNOWN = 3
"""Nothing wrong was found, but not everything could be asked or inspected."""
SUDO_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The directories in which sudo searches for commands, by Debian's and Ubuntu's secure_path, whatever the user's PATH is."""


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
    """Return a hint with ``cni-py`` as it was typed: it need not be in PATH, or not in that of sudo."""
    from shutil import which

    program = sys.argv[0]
    if not program.endswith("/cni-py"):
        return text
    if not which("cni-py"):
        return re.sub(r"(^|[\s\"])cni-py(?= [a-z])", lambda found: f"{found[1]}{program}", text)
    if not which("cni-py", path=SUDO_PATH):
        return re.sub(r"(sudo (?:-E )?)cni-py(?= )", lambda found: f"{found[1]}{os.path.abspath(program)}", text)
    return text


def as_root(typed: Sequence[str]) -> str:
    """Return the command line that was typed, as root: for a hint."""
    return f"sudo cni-py {' '.join(map(quote, typed))}"


def show_folded(text: str, hanging: int = 0) -> None:
    """Print a line: on a terminal folded to its width, in a pipe as it is."""
    from shutil import get_terminal_size

    for line in folded(text, get_terminal_size().columns, hanging) if sys.stdout.isatty() else [text]:
        show(line)


def folded(text: str, width: int, hanging: int = 0) -> list[str]:
    """Fold a line; what follows the first is indented as that is, and ``hanging`` more. Words are never broken."""
    from textwrap import wrap

    indent = text[: len(text) - len(text.lstrip())]
    below = indent + " " * hanging
    if len(text) <= width or width <= len(below):
        return [text]
    # initial_indent and not the text's own: wrap() would drop it, and fold columns into one space otherwise
    return wrap(
        text.lstrip(),
        width,
        initial_indent=indent,
        subsequent_indent=below,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )


def _print(text: str, stream: TextIO) -> None:
    stream.write("\n".join(map(printable, text.split("\n"))) + "\n")
