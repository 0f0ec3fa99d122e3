"""Completion of a command line: what may come next, from the table of commands and from this node's files.

The scripts of the shells (:data:`SCRIPTS`) call ``cni-py __complete SHELL …`` for each TAB, so nothing is imported here that is
not needed for it, and a new command or option is completed without a change of this file or of a script. The answer is a line
for each candidate, or one of :data:`FILES`, :data:`DIRECTORIES`, :data:`COMMANDS`, for which the shell completes by itself.
"""

from __future__ import annotations

import re

from cni_py.cli import candidates, table
from cni_py.journal import printable
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cni_py.cli.table import Argument, Command, Option

    Found = dict[str, str]
    """Candidates with their descriptions, in order."""

FILES, DIRECTORIES, COMMANDS = ":files", ":directories", ":commands"
_PLACEHOLDER = "@PREFIX@"
_ATTACHMENT = {"POD", "ADDRESS", "CONTAINERID", "ATTACHMENT", "SOURCE", "DESTINATION"}
_PLACE = {"PLACE", "NODE", "SOURCE", "DESTINATION"}
"""Words by which the help calls what names an attachment, and a place of a lab."""
_PLAIN = re.compile(r"[\w./:@%+=,|-]+", re.ASCII)


class Line(Value):
    """A command line, as far as it is complete.

    Attributes:
        command: the command that its words select.
        given: names of options that it has.
        arguments: its words that are no options.
        pending: the option whose value comes next.
        ended: "--" was among its words.
        values: of the options that have one.
    """

    command: Command
    given: frozenset[str] = frozenset()
    arguments: tuple[str, ...] = ()
    pending: Option | None = None
    ended: bool = False
    values: tuple[tuple[tuple[str, ...], str], ...] = ()

    def value_of(self, name: str) -> str:
        """Return the value of an option; "" if it has none."""
        return next((value for names, value in reversed(self.values) if name in names), "")


def complete(words: Sequence[str]) -> Found | str:
    """Return the candidates for the last of these words, which may be empty, or what the shell is to complete.

    Args:
        words: the program's name, then its arguments.
    """
    program, *before, word = words
    command = table.PROGRAMS[program]()
    if before[:1] == ["help"] and command.commands:
        return _fitting(_commands(_selected(command, before[1:])), word)
    line = _read(command, before)
    if isinstance(line, str):
        return line
    found = _next(line, word)
    return found if isinstance(found, str) else _fitting(found, word)


def _selected(command: Command, words: Sequence[str]) -> Command:
    for word in words:
        command = next((one for one in command.commands if one.name == word), command)
    return command


def _fitting(found: Found, word: str) -> Found:
    """Return those that begin with the word, without names that a shell would not take as a word: a file can have any."""
    return {text: about for text, about in found.items() if text.startswith(word) and _PLAIN.fullmatch(text)}


# ---- the words before -------------------------------------------------------------------------


def _read(command: Command, words: Sequence[str]) -> Line | str:
    """Return what the complete words say. Returns: :data:`COMMANDS` behind the words that are another program's."""
    line = Line(command)
    for index, word in enumerate(words):
        if line.pending is not None:
            line = line.replace(pending=None, values=(*line.values, (line.pending.names, word)))
        elif line.ended or not word.startswith("-") or word == "-":
            line = _with_argument(line, word)
        elif word == "--":
            if _takes_flanneld_options(line.command):
                return _read(table.flanneld(), words[index + 1 :])
            line = line.replace(ended=True)
        else:
            line = _with_option(line, word)
        if _is_program(line):
            return COMMANDS
    return line


def _with_argument(line: Line, word: str) -> Line:
    below = {one.name: one for one in line.command.commands}
    if word in below:
        return Line(below[word])
    if "keys" in below and not line.arguments:  # the short form, `cni-py config PLUGIN`
        line = Line(below["keys"])
    return line.replace(arguments=(*line.arguments, word))


def _with_option(line: Line, word: str) -> Line:
    name, equals, value = word.partition("=")
    option = _option(line.command, name)
    if option is None:
        return line
    line = line.replace(given=line.given | set(option.names))
    if equals:
        return line.replace(values=(*line.values, (option.names, value)))
    return line.replace(pending=option) if option.value and option.needs_value else line


def _option(command: Command, name: str) -> Option | None:
    """Return the option of this name; Go's take two dashes for one."""
    names = (name, name[1:]) if name.startswith("--") else (name,)
    return next((option for option in command.options if not set(names).isdisjoint(option.names)), None)


def _takes_flanneld_options(command: Command) -> bool:
    return "FLANNELD-OPTION" in command.usage


def _is_program(line: Line) -> bool:
    """Return whether the rest of the line is another program with its arguments."""
    arguments = line.command.arguments
    index = next((n for n, argument in enumerate(arguments) if argument.count in ("...", "A...")), None)
    return index is not None and len(line.arguments) >= index and (line.ended or len(line.arguments) > index)


# ---- what may come next -----------------------------------------------------------------------


def _next(line: Line, word: str) -> Found | str:
    if line.pending is not None:
        return _values_of(line.pending, line)
    name, equals, _ = word.partition("=")
    if word.startswith("-") and equals and not line.ended:
        option = _option(line.command, name)
        found = _values_of(option, line) if option else {}
        return found if isinstance(found, str) else {f"{name}={text}": about for text, about in found.items()}
    if word.startswith("-") and not line.ended:
        return _options(line, word)
    found = {} if line.ended else _commands(line.command)
    argument = _argument(line)
    if argument is None and line.command.commands and not line.arguments:  # `cni-py config PLUGIN`
        argument = next((one.arguments[0] for one in line.command.commands if one.name == "keys"), None)
    also = " POD" if "|POD|" in line.command.usage else ""  # `cni-py check`, where NETWORK may be left out
    more = _values(argument.value + also, argument.choices, line) if argument else {}
    if isinstance(more, str):
        return more
    return found | more or ({} if line.ended or argument else _options(line, word))


def _commands(command: Command) -> Found:
    found = {one.name: one.summary for one in command.commands}
    return found | {"help": "show the help of a command"} if command.path == ("cni-py",) else found


def _options(line: Line, word: str) -> Found:
    found: Found = {}
    for option in line.command.options:
        if option.is_repeatable or line.given.isdisjoint(option.names):
            names = [
                f"-{name}" if word.startswith("--") and name[1] != "-" and len(name) > 2 else name for name in option.names
            ]
            found |= dict.fromkeys(names[-1:] if word in ("", "--") else names, option.text)
    return found


def _argument(line: Line) -> Argument | None:
    """Return the argument that comes next; None: all have been given."""
    arguments, count = line.command.arguments, len(line.arguments)
    if arguments and count >= len(arguments):
        return arguments[-1] if arguments[-1].count in ("+", "*") else None
    return arguments[count] if count < len(arguments) else None


def _values_of(option: Option, line: Line) -> Found | str:
    """Return the values of an option; two that are called NAME are known by the option."""
    results = line.value_of("--cache-dir")
    if "--network" in option.names:
        return candidates.networks(line.value_of("--netconf-path"))
    if "--ifname" in option.names:
        return candidates.interfaces_of_pods(results)
    return _values(option.value, option.choices, line)


def _values(value: str, choices: tuple[str, ...], line: Line) -> Found | str:
    """Return the values of an option or an argument, by what its help calls it: NETWORK, FILE, CONTAINERID/IFNAME."""
    if choices:
        return dict.fromkeys(choices, "")
    words = re.split(r"[^A-Z]+", value)
    directory = line.value_of("--netconf-path")
    results = line.value_of("--cache-dir")
    found: Found = {}
    if value == "CONTAINERID/IFNAME":
        return candidates.cached(results, line.arguments[0] if line.arguments else "")
    if value == "N" and line.command.path[:2] == ("cni-py", "lesson"):
        return candidates.lessons()
    if "NETWORK" in words:
        found |= candidates.networks(directory)
    is_ours = line.command.path[0] == "cni-py"
    if is_ours and (not _ATTACHMENT.isdisjoint(words) or value == "ID"):
        found |= candidates.attachments(results, only_ids=value == "ID")
    if "NETNS" in words:
        found |= candidates.namespaces()
    if not _PLACE.isdisjoint(words):
        found |= candidates.places(line.value_of("--directory"), only_nodes=value == "NODE")
    if "PLUGIN" in words:
        found |= candidates.plugins()
    if "IP" in words and not is_ours:
        found |= candidates.interfaces(addresses=value == "IP")
    if found:
        return found
    return DIRECTORIES if "DIR" in words else FILES if not {"FILE", "PATH", "NETNS"}.isdisjoint(words) else {}


# ---- for the shells ---------------------------------------------------------------------------


def answer(shell: str, words: Sequence[str]) -> list[str]:
    """Return the lines for a shell.

    Args:
        words: for bash the text of the line as far as the cursor; for the others the words, the last as far as the cursor.
    """
    if shell == "bash":
        words = _split(words[0])
    program = words[0].rpartition("/")[2]
    if program not in table.PROGRAMS:
        return []
    found = complete([program, *words[1:]])
    if isinstance(found, str):
        return [found]
    if shell == "bash":
        cut = _wordbreak(words[-1])
        return [text[cut:] for text in found]
    if shell == "zsh":
        return [text.replace(":", "\\:") + (f":{_short(about)}" if about else "") for text, about in found.items()]
    return [f"{text}\t{_short(about)}" if about else text for text, about in found.items()]


def _short(text: str) -> str:
    """Return the first sentence; of what a file says, control characters are escaped."""
    return printable(re.split(r"[.;:] ", text, maxsplit=1)[0].rstrip("."))


def _wordbreak(word: str) -> int:
    """Return where bash begins the word that it replaces: behind the last of its COMP_WORDBREAKS."""
    return max(word.rfind("="), word.rfind(":")) + 1


def _split(line: str) -> list[str]:
    """Return the words of a command line that may end within one, or within a quotation."""
    import shlex

    reader = shlex.shlex(line, posix=True, punctuation_chars=False)
    reader.whitespace_split, reader.commenters = True, ""
    words: list[str] = []
    try:
        while (word := reader.get_token()) is not None:
            words.append(word)
    except ValueError:  # an open quotation
        words.append(reader.token.lstrip("'\""))
        return words
    return [*words, ""] if line[-1:].isspace() and line[-2:-1] != "\\" else words


SCRIPTS = {
    "bash": r"""# Completion of cni-py, flanneld and cni-agent for bash. Made by `cni-py completion bash`.
_cni_py() {
    local line=${COMP_LINE:0:COMP_POINT} word=${COMP_WORDS[COMP_CWORD]} found
    # what is in front of the command (sudo, a variable) is not its line
    line=${line#"${line%%"${COMP_WORDS[0]}"*}"}
    found=$(@PREFIX@/bin/cni-py __complete bash "$line" 2>/dev/null)
    case $word in [=:]) word= ;; esac
    case $found in
        :files) compopt -o filenames 2>/dev/null; found=$(compgen -f -- "$word") ;;
        :directories) compopt -o filenames 2>/dev/null; found=$(compgen -d -- "$word") ;;
        :commands) found=$(compgen -c -- "$word"; compgen -f -- "$word") ;;
    esac
    COMPREPLY=()
    [ -z "$found" ] || mapfile -t COMPREPLY <<<"$found"
}
complete -F _cni_py cni-py flanneld cni-agent
""",
    "zsh": r"""#compdef cni-py flanneld cni-agent
# Completion of cni-py, flanneld and cni-agent for zsh. Made by `cni-py completion zsh`.
_cni_py() {
    local -a found
    found=("${(@f)$(@PREFIX@/bin/cni-py __complete zsh "${(@Q)words[1,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}")
    case $found[1] in
        '') return 1 ;;
        :files) [[ $PREFIX == -*=* ]] && compset -P '*='; _files ;;
        :directories) [[ $PREFIX == -*=* ]] && compset -P '*='; _files -/ ;;
        :commands) shift words; (( CURRENT-- )); _command_names || _files ;;
        *) _describe -V 'cni-py' found ;;
    esac
}
if [[ $funcstack[1] == _cni-py ]]; then
    _cni_py "$@"
else
    compdef _cni_py cni-py flanneld cni-agent
fi
""",
    "fish": r"""# Completion of cni-py, flanneld and cni-agent for fish. Made by `cni-py completion fish`.
function __cni_py_complete
    set -l word (commandline -ct)
    set -l found (@PREFIX@/bin/cni-py __complete fish (commandline -opc) "$word" 2>/dev/null)
    switch "$found[1]"
        case :files :directories :commands
            set -l start (string match -r -- '^-[^=]*=' $word)
            set -l path (string replace -r -- '^-[^=]*=' '' $word)
            if test "$found[1]" = :directories
                __fish_complete_directories "$path" | string replace -r -- '^' "$start"
            else
                __fish_complete_path "$path" | string replace -r -- '^' "$start"
            end
        case '*'
            printf '%s\n' $found
    end
end
for program in cni-py flanneld cni-agent
    complete -c $program -f -a '(__cni_py_complete)'
end
""",
}
"""The script of each shell; ``@PREFIX@`` is where cni-py is installed."""

_NAMES = ("cni-py", "flanneld", "cni-agent")
INSTALLED = {
    "bash": tuple(f"bash-completion/completions/{name}" for name in _NAMES),
    "zsh": ("zsh/site-functions/_cni-py",),
    "fish": tuple(f"fish/vendor_completions.d/{name}.fish" for name in _NAMES),
}
"""Paths of each below ``PREFIX/share``: bash and fish look for a file with the name of the command."""


def script(shell: str, program: str) -> str:
    """Return the script that calls this program, ``DIRECTORY/bin/cni-py``."""
    import os

    return SCRIPTS[shell].replace(f"{_PLACEHOLDER}/bin/cni-py", os.path.abspath(program))
