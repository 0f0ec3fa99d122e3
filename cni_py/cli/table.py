"""The commands and options of every program as one table: of it are made completion, man pages and the reference.

The sources are what the programs themselves parse: cni-py's and cni-agent's parsers of argparse, flanneld's options, those of
``dhcp daemon``. The end of an option's help text has its variable and its default, ``(NETCONFPATH; /etc/cni/net.d)``.
"""

from __future__ import annotations

import argparse
import re

from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TAIL = re.compile(r"\s*\(([^()]*)\)$")
_VARIABLE = re.compile(r"([A-Z][A-Z_]+)(?:; (.*))?")
_REPEATED = " (may be repeated)"


class Option(Value):
    """An option.

    Attributes:
        value: what its help calls the value; "" for a switch.
        needs_value: false for a value that may be left out.
        text: its meaning, without ``variable`` and ``default``.
        variable: of the environment, which the option overrides.
    """

    names: tuple[str, ...]
    text: str
    value: str = ""
    needs_value: bool = True
    default: str = ""
    variable: str = ""
    choices: tuple[str, ...] = ()
    is_repeatable: bool = False
    group: str = ""


class Argument(Value):
    """An argument that is no option. ``count``: as argparse's ``nargs``: "", "?", "+", "*" or "..."."""

    value: str
    text: str
    choices: tuple[str, ...] = ()
    count: str = ""


class Command(Value):
    """A program, or a command of one. ``path``: the words that select it."""

    path: tuple[str, ...]
    usage: str = ""
    summary: str = ""
    description: str = ""
    epilog: str = ""
    options: tuple[Option, ...] = ()
    arguments: tuple[Argument, ...] = ()
    commands: tuple[Command, ...] = ()

    @property
    def name(self) -> str:
        return self.path[-1]

    def leaves(self) -> Iterator[Command]:
        """Yield the commands that do something: this one, or those below it."""
        if not self.commands:
            yield self
        for command in self.commands:
            yield from command.leaves()


# ---- argparse ---------------------------------------------------------------------------------


def of_parser(parser: argparse.ArgumentParser, path: tuple[str, ...], summary: str = "") -> Command:
    """Return a parser's table, with its commands."""
    options, arguments, commands = [], [], list[Command]()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
            commands += [of_parser(one, (*path, name), summaries.get(name, "")) for name, one in action.choices.items()]
        elif action.help == argparse.SUPPRESS:
            continue
        elif action.option_strings:
            options.append(_option(parser, action))
        else:
            arguments.append(_argument(parser, action))
    return Command(
        path,
        " ".join(parser.format_usage().split()).removeprefix("usage: "),
        summary,
        parser.description or "",
        parser.epilog or "",
        tuple(options),
        tuple(arguments),
        tuple(commands),
    )


def _option(parser: argparse.ArgumentParser, action: argparse.Action) -> Option:
    text = _help(parser, action)
    repeatable = text.endswith(_REPEATED)
    text = text.removesuffix(_REPEATED)
    takes_value = action.nargs != 0
    variable = default = ""
    if takes_value and (found := _TAIL.search(text)):
        text, tail = text[: found.start()], found[1]
        named = _VARIABLE.fullmatch(tail) if tail != action.default else None  # a default may be in capitals, too
        variable, default = (named[1], named[2] or "") if named else ("", tail)
    choices = tuple(map(str, action.choices or ()))
    value = _shown(action, choices) if takes_value else ""
    names, needs_value = tuple(action.option_strings), action.nargs != "?"
    return Option(names, text, value, needs_value, default, variable, choices, repeatable)


def _argument(parser: argparse.ArgumentParser, action: argparse.Action) -> Argument:
    choices = tuple(map(str, action.choices or ()))
    return Argument(_shown(action, choices), _help(parser, action), choices, str(action.nargs or ""))


def _shown(action: argparse.Action, choices: tuple[str, ...]) -> str:
    return str(action.metavar or "|".join(choices) or action.dest.upper())


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    return parser._get_formatter()._expand_help(action) if action.help else ""


# ---- the programs -----------------------------------------------------------------------------


def cni_py() -> Command:
    from cni_py.cli import arguments

    return of_parser(arguments.build(), ("cni-py",))


def cni_agent() -> Command:
    from cni_py.agent import options

    return of_parser(options.build(), ("cni-agent",))


def flanneld() -> Command:
    from cni_py.flanneld import options as flags

    options = []
    for name, field in flags.FIELDS.items():
        given = field.metadata
        value = given["value"].removeprefix("[=").removesuffix("]")
        options.append(
            Option(
                (f"-{name}",),
                given["text"],
                value,
                value == given["value"],
                flags.shown_default(field),
                "" if given["group"] == flags.ACTIONS else flags.variable_of(name),
                tuple(value.split("|")) if value.islower() and "|" in value else (),
                field.default == (),
                given["group"],
            )
        )
    return Command(("flanneld",), "flanneld [OPTION]...", options=tuple(options))


def dhcp_daemon() -> Command:
    from cni_py.dhcp.daemon_options import OPTIONS

    options = (Option((f"-{name}",), text, value, True, default) for name, (value, default, text) in OPTIONS.items())
    return Command(("dhcp", "daemon"), "dhcp daemon [OPTION]...", options=tuple(options))


PROGRAMS: dict[str, Callable[[], Command]] = {
    "cni-py": cni_py,
    "flanneld": flanneld,
    "cni-agent": cni_agent,
    "dhcp daemon": dhcp_daemon,
}
"""Every program with options."""
