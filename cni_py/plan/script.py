"""Turn the journal of a call into a POSIX shell script that makes the same changes. Pure.

The journal has nearly all of it. What it lacks comes from the run that is scripted: the content of a file that is long or a
secret, the MAC addresses that the kernel chose, and, in a record, by which numbers the kernel knows a namespace, which the
script asks for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from cni_py.explain import calls
from cni_py.explain.steps import Note, Step, explain
from cni_py.explain.words import Command, parse, unquoted
from cni_py.journal import RUN_DIR, quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from cni_py.explain.calls import Call


Named = tuple[str, str]
"""A link: path of its namespace, "" for the host's, and its name."""
_RANDOM_KINDS = frozenset({"dummy", "macvlan", "tap", "tun", "veth", "vrf"})
"""Kinds of links whose MAC address the kernel chooses at random; others have that of another link."""
_IDENTITY = re.compile(rb'"dev":(\d+),"ino":(\d+)(?:,"ctime":(\d+))?')
_NETNS = re.compile(rb'"netns":"((?:[^"\\]|\\.)*)"')
_LETTERS = {rb"\r": b"\r", rb"\n": b"\n", rb"\\": b"\\", b"%%": b"%"}
_SHOW = '"dev":%d,"ino":%i,"ctime":%.9Z'
_PROGRAMS = {"nft": "nftables", "nsenter": "util-linux", "sysctl": "procps", "conntrack": "conntrack", "install": "coreutils"}
"""Programs, and the packages of Debian that have them; all others are named as they are."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """State that a run left and its journal does not have.

    Attributes:
        contents: of files, by their paths.
        macs: the MAC address of each link.
    """

    contents: Mapping[str, bytes] = field(default_factory=dict)
    macs: Mapping[Named, str] = field(default_factory=dict)


def render(found: Sequence[Call], outcome: Outcome, heading: Iterable[str] = ()) -> Iterator[str]:
    """Yield the lines of the script.

    Args:
        heading: sentences for its beginning.
    """
    body = [line for call in found for line in _call(call, outcome, final_names(found))]
    yield "#!/bin/sh"
    yield from (f"# {line}".rstrip() for line in heading)
    programs = sorted({program for call in found for program in programs_of(call)})
    yield f"# Run it as root. Programs: {', '.join(map(_with_package, programs))}."
    yield "set -eu"
    if any(f" {RUN_DIR}/" in line for line in body):
        yield f"mkdir -p -m 700 {RUN_DIR}  # the journal of the call would have made it"
    yield from body


def _with_package(program: str) -> str:
    return f"{program} ({_PROGRAMS[program]})" if program in _PROGRAMS else program


def programs_of(call: Call) -> set[str]:
    """Return the names of the programs that the commands of a call are of."""
    found = set[str]()
    for line in call.lines:
        command = parse(line.text) if line.kind == calls.STEP and not line.failure else None
        if command:
            found |= {command.words[0], *(word for word in command.enter[:1])}
    return {unquoted(program) for program in found}


def _call(call: Call, outcome: Outcome, final: Mapping[Named, Named]) -> Iterator[str]:
    yield ""
    yield f"# ---- {call.title}"
    for item in explain(call, verbose=True):
        if isinstance(item, Note):
            yield f"# {item.line.text}"
        elif item.line.failure:
            yield f"# failed, and is not tried: {item.line.text}"
        else:
            yield from _step(item, outcome, final)


def _step(step: Step, outcome: Outcome, final: Mapping[Named, Named]) -> Iterator[str]:
    yield ""
    yield f"# {step.number}. {step.what or step.line.text}"
    yield from (f"#    {text}" for text in filter(None, (step.why.text, step.why.asked(), step.why.spec())))
    command = parse(step.line.text)
    yield from _command(step, command, outcome)
    for link in made_links(command) if command else ():
        mac = outcome.macs.get(final.get(link.named, link.named), "")
        if mac and link.kind in _RANDOM_KINDS and not link.has_mac:
            yield "# The kernel chose this MAC address at random."
            enter = f"nsenter --net={quote(link.named[0])} " if link.named[0] else ""
            yield f"{enter}ip link set dev {quote(link.named[1])} address {mac}"


def _command(step: Step, command: Command | None, outcome: Outcome) -> Iterator[str]:
    if command is None or "/dev/stdin" not in command.words:
        yield from step.shown if command is not None and command.words[0] == "nft" else [step.line.text]
        return
    path = unquoted(command.words[-1])
    content = _printed(command) if command.producer else outcome.contents.get(path)
    if content is None:
        yield "# The file was deleted by a later step: nothing knows its content any more."
        content = b""
    install = " ".join([*command.enter, *command.words])
    identity, netns = _IDENTITY.search(content), _NETNS.search(content)
    if identity and netns and path.startswith(f"{RUN_DIR}/"):
        yield from _record(content, identity, netns[1].decode(errors="surrogateescape"), install)
    else:
        yield f"{printing(content)} | {install}"


def _record(content: bytes, identity: re.Match[bytes], netns: str, install: str) -> Iterator[str]:
    """Yield the commands that write a record, with the numbers that its namespace has when the script runs."""
    before, after = content[: identity.start()], content[identity.end() :]
    yield f"identity=$(stat -L -c {quote(_SHOW)} {quote(netns)})"
    yield "identity=${identity%.*}${identity##*.}  # seconds and nanoseconds as one number"
    yield f'{{ {printing(before)}; printf %s "$identity"; {printing(after)}; }} | {install}'


def _printed(command: Command) -> bytes:
    """Return what the ``printf`` in front of a command prints."""
    form, *words = [unquoted(word).encode(errors="surrogateescape") for word in command.producer[1:]]
    text, rest = _filled(form, words)
    while rest and b"%s" in form:
        more, rest = _filled(form, rest)
        text += more
    return text


def _filled(form: bytes, words: list[bytes]) -> tuple[bytes, list[bytes]]:
    """Return a format with its words, as printf uses it once, and the words that are left."""
    left = list(words)

    def replaced(found: re.Match[bytes]) -> bytes:
        word = found[0]
        if word == b"%s":
            return left.pop(0) if left else b""
        return _LETTERS.get(word) or bytes([int(word[1:], 8)])

    return re.sub(rb"\\(?:[rn\\]|[0-7]{3})|%[s%]", replaced, form), left


def printing(content: bytes) -> str:
    """Return the command that prints the content: its text, or where a shell's word cannot hold it, each byte as a number."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = "\0"
    if all(letter.isprintable() for letter in text.replace("\n", "")):
        *lines, last = text.split("\n")
        if not last and lines:
            return f"printf '%s\\n' {' '.join(map(quote, lines))}"
        form = quote("\\n".join(["%s"] * (len(lines) + 1)))
        return f"printf {form} {' '.join(map(quote, [*lines, last]))}"
    shown = "".join(chr(byte) if 32 <= byte < 127 and byte not in b"\\%'" else f"\\{byte:03o}" for byte in content)
    return f"printf '{shown}'" if not shown.startswith("-") else f"printf '\\055{shown[1:]}'"  # it would be an option


# ---- links -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Made:
    """A link that a command makes. ``has_mac``: the command says which MAC address it gets."""

    named: Named
    kind: str
    has_mac: bool


def made_links(command: Command) -> Iterator[Made]:
    """Yield the links that a command makes."""
    words = [unquoted(word) for word in command.words]
    words = words[: words.index("&&")] if "&&" in words else words
    if words[:3] == ["ip", "tuntap", "add"]:
        yield Made((command.netns, words[words.index("dev") + 1]), words[words.index("mode") + 1], False)
    if words[:3] != ["ip", "link", "add"]:
        return
    at = words.index("type") if "type" in words else len(words)
    kind = words[at + 1] if at + 1 < len(words) else ""
    if kind == "veth" and words[at + 2 : at + 4] == ["peer", "name"]:
        peer = words[at + 4 :]
        yield Made((_option(peer, "netns") or command.netns, peer[0]), kind, "address" in peer)
        yield Made((command.netns, words[3]), kind, "address" in words[:at])
        return
    yield Made((_option(words[:at], "netns") or command.netns, words[3]), kind, "address" in words[:at])


def _option(words: Sequence[str], name: str) -> str:
    return words[words.index(name) + 1] if name in words[:-1] else ""


def final_names(found: Iterable[Call]) -> dict[Named, Named]:
    """Return, for each link that is moved or renamed after a call makes it, namespace and name that it has in the end."""
    now: dict[Named, Named] = {}
    for line in (line for call in found for line in call.lines if line.kind == calls.STEP and not line.failure):
        command = parse(line.text)
        words = [unquoted(word) for word in command.words] if command else []
        if command is None or words[:3] != ["ip", "link", "set"] or "name" not in words[4:-1]:
            continue
        before = (command.netns, words[3])
        after = (_option(words[4:], "netns") or command.netns, _option(words[4:], "name"))
        first = next((made for made, last in now.items() if last == before), before)
        now[first] = after
    return now
