"""The man pages: which there are, and what each is made of.

Text is taken from where it is written once: the help of the commands (cni_py/cli/table.py), the pages of docs/, the models of
the configurations, the facts. A page is put together as Markdown and written by ``roff.py``.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from textwrap import dedent, fill
from typing import TYPE_CHECKING

from cni_py import __version__
from cni_py.cli import table
from cni_py.config import reference
from cni_py.plugin_table import PLUGINS
from integration.reference import pages, roff

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cni_py.cli.table import Command

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SHARE = ROOT / "conf" / "share"
DATE = "2026-12-01"
"""Date of the pages: the same text is the same page, whenever it is made. A release sets it (docs/contributing.md)."""

_SLOT = re.compile(r"<!-- man: (?P<name>[^>]+?) -->\n(?:[^\n]+\n)+")
_MARKER = re.compile(r"<!-- (?:generated:[^>]*|end|not run:[^>]*|needs:[^>]*|fresh node) -->\n")


def render() -> dict[Path, str]:
    """Return every man page."""
    made = {page_of("cni-py", 1): cni_py(), page_of("flanneld", 8): flanneld(), page_of("cni-agent", 8): cni_agent()}
    return made | {page_of(f"cni-{name}", 8): plugin(name) for name in PLUGINS}


def page_of(name: str, section: int) -> Path:
    return SHARE / "man" / f"man{section}" / f"{name}.{section}"


def _page(name: str, section: int, sections: Iterable[tuple[str, str]]) -> str:
    text = "\n\n".join(f"# {title}\n\n{body.strip()}" for title, body in sections if body.strip())
    return roff.page(name, section, DATE, f"cni-py {__version__}", text)


# ---- the parts of a page ----------------------------------------------------------------------


def sections_of(page: Path) -> dict[str, str]:
    """Return the sections of a page of docs/, with its slots filled; their own headings are of the second level."""
    text = re.sub(r"^  \n", "\n", _MARKER.sub("", page.read_text()), flags=re.MULTILINE)
    text = _SLOT.sub(lambda found: SLOTS[found["name"]]() + "\n", text)
    found = {}
    for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        found[title.strip().upper()] = re.sub(r"^#### |^### ", "## ", body, flags=re.MULTILINE)
    if "NAME" in found:
        found["NAME"] = found["NAME"].replace(" – ", " - ")  # by which apropos finds it
    return found


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table; "" without rows, and its section is left out."""
    filled = list(rows)
    return pages.markdown(head, filled) if filled else ""


def _files(owner: str) -> str:
    return _table(("path", "content"), ((row[0], row[1]) for row in pages.file_rows(owner)))


def _objects(owner: str) -> str:
    return _table(("object", "what for", "deleted by"), ((row[0], row[1], row[3]) for row in pages.object_rows(owner)))


def _environment(owner: str) -> str:
    return _table(("variable", "meaning"), (row[:2] for row in pages.environment_rows(owner)))


SLOTS: dict[str, Callable[[], str]] = {
    "files cni-py": lambda: _files("cni-py"),
    "files flanneld": lambda: _files("flanneld"),
    "kernel flanneld": lambda: "What flanneld keeps in the kernel:\n\n" + _objects("flanneld"),
}
"""Paragraphs of docs/ that lead to another page, and what a man page has instead."""


def _see_also(*names: str) -> str:
    return ", ".join(f"**{name.partition('(')[0]}**({name.partition('(')[2]}" for name in names)


def _plain(text: str) -> str:
    """Return a help text as Markdown: paragraphs, and what is indented, unchanged."""
    blocks = []
    for block in text.strip().split("\n\n"):
        head, _, rest = block.partition("\n")
        if rest and all(line.startswith(" ") or not line for line in rest.split("\n")):
            title = head.rstrip(":")
            blocks += [f"**{title[:1].upper()}{title[1:]}:**", "```text\n" + dedent(rest) + "\n```"]
        else:
            sentence = re.sub(r"^exit status:", "Exit status:", block)
            blocks.append(pages.prose(re.sub(r"([*_<])", r"\\\1", sentence)))
    return "\n\n".join(blocks)


def _command(command: Command) -> str:
    """Return the section of a command: usage, description, arguments and options, from the text of its help."""
    rows = [(pages.code(one.value), pages.prose(one.text) or one.value) for one in command.arguments]
    for words, text, default, variable in pages.option_rows(command.options):
        about = [f"Default: {default}." if default not in ("", "off") else "", f"Variable: {variable}." if variable else ""]
        rows.append((words, " ".join([text if text.endswith(".") else f"{text}.", *filter(None, about)])))
    options = pages.markdown(("argument, option", "meaning"), rows) if rows else ""
    description = command.description or f"{command.summary[:1].upper()}{command.summary[1:]}."
    return "\n\n".join(filter(None, [f"## {' '.join(command.path)}", pages.code(command.usage), _plain(description), options]))


# ---- the pages --------------------------------------------------------------------------------


def _synopsis(lines: Iterable[str]) -> str:
    """Return the lines, broken at 70 columns."""
    return (
        "```text\n" + "\n".join(fill(line, 70, subsequent_indent=" " * 8, break_on_hyphens=False) for line in lines) + "\n```"
    )


NEIGHBOURS = ("cni-py(1)", "flanneld(8)", "cni-agent(8)")


def cni_py() -> str:
    program = table.cni_py()
    of_docs = sections_of(DOCS / "cni-py.md")
    description, _, _ = of_docs["DESCRIPTION"].partition("\n## ")
    synopsis = pages.synopsis(program)
    return _page(
        "cni-py",
        1,
        [
            ("NAME", "cni-py - attach network namespaces to CNI networks, and see what the plugins did"),
            ("SYNOPSIS", _synopsis([*synopsis, "cni-py help [COMMAND...]", "cni-py --version"])),
            ("DESCRIPTION", description),
            ("COMMANDS", "\n\n".join(_command(command) for command in program.leaves())),
            ("OPTIONS", re.split(r"^## .*$|^[|].*$", of_docs["OPTIONS"], flags=re.MULTILINE)[-1]),
            ("ENVIRONMENT", _environment("cni-py")),
            ("CONFIGURATION FILES", of_docs["CONFIGURATION FILES"]),
            ("EXIT STATUS", of_docs["EXIT STATUS"]),
            ("FILES", _files("cni-py")),
            ("EXAMPLES", of_docs["EXAMPLES"]),
            ("SEE ALSO", _see_also(*NEIGHBOURS[1:], *(f"cni-{name}(8)" for name in PLUGINS), "ip-netns(8)", "nft(8)")),
        ],
    )


def flanneld() -> str:
    of_docs = sections_of(DOCS / "flanneld.md")
    return _page(
        "flanneld",
        8,
        [
            *((name, of_docs[name]) for name in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "CONFIGURATION")),
            ("THE HOST'S OWN NETWORKS", of_docs["THE HOST'S OWN NETWORKS"]),
            ("ENVIRONMENT", _environment("flanneld")),
            *((name, of_docs[name]) for name in ("FILES", "HEALTH", "SIGNALS", "EXIT STATUS", "EXAMPLES")),
            (
                "SEE ALSO",
                _see_also("cni-py(1)", "cni-flannel(8)", "cni-agent(8)", "ip(8)", "bridge(8)", "nft(8)", "etcdctl(1)"),
            ),
        ],
    )


def cni_agent() -> str:
    of_docs = sections_of(DOCS / "agent.md")
    return _page(
        "cni-agent",
        8,
        [
            *((name, of_docs[name]) for name in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS")),
            ("CONFIGURATION", "It has none: each call brings that of its network."),
            *((name, of_docs[name]) for name in ("SIGNALS", "SECURITY", "RUNNING IT")),
            ("ENVIRONMENT", _environment("cni-agent")),
            ("FILES", _files("cni-agent")),
            *((name, of_docs[name]) for name in ("EXIT STATUS", "EXAMPLES")),
            ("SEE ALSO", _see_also("cni-py(1)", "flanneld(8)", "systemd.socket(5)")),
        ],
    )


NO_OPTIONS = """\
The plugin takes none: its parameters are in the environment, and its configuration is on standard input. Executed by hand,
without CNI_COMMAND, it prints its name and the versions that it supports.
"""
EXIT_STATUS = """\
0
: Success: of ADD the result is on standard output.

1
: Failure: an error object is on standard output, `{"cniVersion", "code", "msg", "details"}`. `details` ends with the
  next command to type.

Codes are those of the CNI specification, and from 100 on those of this suite:

"""


def plugin(name: str) -> str:
    """Return the page of a plugin; without a page in docs/plugins what its module says of itself."""
    row = PLUGINS[name]
    summary, sections = _prose(name)
    keys = [*reference.rows(reference.NetworkConfig), *reference.plugin_rows(name)]
    kind = "ipam" if row.kind == "ipam" else "plugins"
    synopsis = f'`{{"type": "{name}", ...}}` in the `{kind}` of a network configuration'
    daemon = pages.options_table(table.dhcp_daemon().options) if name == "dhcp" else ""
    codes = pages.markdown(
        ("code", "meaning"), ((str(one.code), f"{one.meaning} {one.what_to_do}") for one in pages.failures())
    )
    return _page(
        f"cni-{name}",
        8,
        [
            ("NAME", f"cni-{name} - {summary[:1].lower()}{summary[1:].rstrip('.')}"),
            ("SYNOPSIS", synopsis + ("\n\n`dhcp daemon [OPTION]...`" if daemon else "")),
            ("DESCRIPTION", sections.pop("DESCRIPTION")),
            ("CONFIGURATION", _keys(keys, since=row.since)),
            ("OPTIONS", NO_OPTIONS + (f"\n\n`dhcp daemon` has these:\n\n{daemon}" if daemon else "")),
            ("ENVIRONMENT", "A runtime sets them; by hand **cni-py**(1) does.\n\n" + _environment(name)),
            ("FILES", _files(name)),
            ("KERNEL OBJECTS", _objects(name)),
            ("EXIT STATUS", EXIT_STATUS + codes),
            ("EXAMPLES", sections.pop("EXAMPLES", "")),
            *sections.items(),
            ("SEE ALSO", _see_also(*NEIGHBOURS, *_others(name))),
        ],
    )


def _prose(name: str) -> tuple[str, dict[str, str]]:
    page = DOCS / "plugins" / f"{name}.md"
    if page.exists():
        summary = page.read_text().split("\n\n")[1]
        return " ".join(summary.split()), sections_of(page)
    doc = " ".join((importlib.import_module(PLUGINS[name].module).__doc__ or name).partition("\n\n")[0].split())
    summary = doc.partition(": ")[2] or doc
    return summary.rstrip("."), {"DESCRIPTION": summary[:1].upper() + summary[1:]}


def _keys(rows: Iterable[reference.Row], since: str) -> str:
    listed = []
    for row in rows:
        default = (
            f", default `{row.default}`"
            if row.default not in ("none", "required")
            else ", required" * (row.default == "required")
        )
        example = f" Example: `{row.example}`." if row.example not in ("", "true", "false") else ""
        listed.append((f"`{row.key}` ({row.type}{default})", f"{row.description}{example}"))
    return (
        "Keys are taken in any case, and `a.b` is the key `b` of the object `a`. "
        f"Versions of the CNI spec: {since} to 1.1.0.\n\n" + pages.markdown(("key", "meaning"), listed)
    )


def _others(name: str) -> list[str]:
    """Return the pages of plugins that one is used with: of its kind, and the IPAM plugins or those that it is chained to."""
    kind = PLUGINS[name].kind
    others = [other for other, row in PLUGINS.items() if other != name and (row.kind == kind or "ipam" in (row.kind, kind))]
    return [f"cni-{other}(8)" for other in others]
