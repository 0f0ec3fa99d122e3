"""Command ``cni-py explain``: what was done on this node, and why, from the journals. Changes nothing.

The journals are read here (attachments.py finds them), explained in cni_py/explain/, and printed: on a terminal in colours and
within its width, elsewhere as they are.
"""

from __future__ import annotations

import os
import sys

from cni_py import journal
from cni_py.cli import attachments, journals
from cni_py.cli.output import show, show_json
from cni_py.errors import CniError
from cni_py.explain import calls, steps, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from rich.console import Console

    from cni_py.cli.attachments import Known
    from cni_py.explain.text import Part

    Lines = Callable[[int | None], Iterable[list[Part]]]

NO_JOURNAL = "# no journal: other plugins than those of cni-py attached it, or it is older than the last boot"
_STYLES = {
    text.TITLE: "bold",
    text.GROUP: "bold cyan",
    text.WHAT: "",
    text.COMMAND: "green",
    text.WHY: "dim",
    text.DIM: "dim",
    text.BAD: "bold red",
}


def run(options: argparse.Namespace) -> int:
    """Print journals, or the list of attachments. Returns: the exit status. Raises: CniError."""
    if options.attachment is not None and (options.flanneld or options.node):
        raise CniError("--flanneld and --node are not about an attachment", hint="leave the attachment out, or the option")
    if options.flanneld:
        return _explain_file(options, options.flanneld)
    if options.node:
        return _explain_node(options)
    found = attachments.known()
    if options.attachment is None:
        found = [one for one in found if options.ifname in ("", one.ifname) and options.network in ("", one.network)]
        return _list(found, as_json=options.json)
    found = attachments.select(found, attachments.as_address(options.attachment), options.ifname, options.network)
    if options.json:
        show_json([one.as_json() | _as_json(_lines_of(one), options) for one in found])
        return 0
    print_lines(lambda width: _render_attachments(found, width, verbose=options.verbose))
    return 0


def _list(found: Sequence[Known], *, as_json: bool) -> int:
    if as_json:
        show_json([one.as_json() for one in found])
    for line in attachments.render_list(found) if not as_json else ():
        show(line)
    return 0


def _explain_file(options: argparse.Namespace, path: str) -> int:
    """Explain the journal of flanneld. Raises: CniError."""
    try:
        lines = journals.read_lines(path)
    except FileNotFoundError as error:
        hint = "systemctl status flanneld; with another -subnet-file its journal is beside that: --flanneld FILE"
        raise CniError(
            f'flanneld has no journal: "{path}" does not exist', "it has changed nothing since the last boot", hint
        ) from error
    return _explain_lines(options, {"path": path}, lines)


def _explain_node(options: argparse.Namespace) -> int:
    """Explain what was done for no single attachment. Raises: IOFailure."""
    names = [name for name in journals.of_node() if options.network in ("", name.partition(":")[2])]
    lines = [line for name in names for line in journals.read_lines(f"{journal.JOURNAL_DIR}/{name}")]
    return _explain_lines(options, {"path": journal.JOURNAL_DIR}, lines)


def _explain_lines(options: argparse.Namespace, where: dict[str, str], lines: list[str]) -> int:
    if options.json:
        show_json(where | _as_json(lines, options))
        return 0
    found = sorted(calls.read(lines), key=lambda call: call.began)
    if not found:
        show("no changes")
    print_lines(lambda width: text.render(found, width, verbose=options.verbose))
    return 0


def _as_json(lines: list[str], options: argparse.Namespace) -> dict[str, object]:
    return {"journal": lines, "calls": [steps.as_json(call, verbose=options.verbose) for call in calls.read(lines)]}


def _lines_of(one: Known) -> list[str]:
    return journals.lines_of(one.journal) if one.journal else []


def _render_attachments(found: Iterable[Known], width: int | None, *, verbose: bool) -> Iterator[list[Part]]:
    for number, one in enumerate(found):
        if number:
            yield []
        for line in attachments.render_heading(one):
            yield [text.Part(text.TITLE, line)]
        lines = _lines_of(one)
        yield from text.render(calls.read(lines), width, verbose=verbose) if lines else [[text.Part(text.DIM, NO_JOURNAL)]]


def print_lines(lines: Lines) -> None:
    """Print lines to standard output; on a terminal within its width, and in colours unless ``NO_COLOR`` is set."""
    if not sys.stdout.isatty():
        for parts in lines(None):
            show("".join(part.text for part in parts))
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    for parts in lines(console.width):
        if os.environ.get("NO_COLOR") or console.is_dumb_terminal:
            show("".join(part.text for part in parts))
        else:
            _print_styled(console, parts)


def _print_styled(console: Console, parts: list[Part]) -> None:
    from rich.text import Text

    line = Text.assemble(*((journal.printable(part.text), _STYLES[part.kind]) for part in parts))
    console.print(line, soft_wrap=True)  # broken already where it has to be: a command stays one that can be copied
