"""Changing nftables: text, through libnftables, as transactions. Reading, and elements alone, are in ``nfnetlink.py``.

How it works. A call of :meth:`Nft.run` is one transaction in the language of ``nft``: all of it or
nothing. The library reads and sends it in 0.1 to 0.2 ms; the ``nft`` program would take 27.

Facts about libnftables 1.0.6 this relies on: a failed ``delete element`` takes 11 ms (it looks
for a "did you mean"), so nothing is deleted that was not seen; two ``list`` commands in one
buffer fail.

A context belongs to the network namespace of the thread that made it, and to one thread at a time:
:class:`borrowed` keeps a few for reuse. A child process creates its own.
"""

from __future__ import annotations

import posix
from errno import EACCES, EBUSY, EINVAL, ENOENT, EPERM

from cni_py.errors import KernelRefused, NotAvailable
from cni_py.journal import note, step
from cni_py.lazy import without_init
from cni_py.packetfilter import nfnetlink, ownership

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Any, TypeVar

    from cni_py.packetfilter.nfnetlink import Element

    T = TypeVar("T")

LIBRARY = "libnftables.so.1"
TRIES = 5
"""Tries of a change: another process may flush or delete the chains after they were read."""
CHANGED = (ENOENT, EBUSY, EINVAL)
"""Refusals of a change where it has; EINVAL is what is known of a refusal of iptables."""
_PRINTED_BYTES = 64 << 20
_JSON, _HANDLES, _TERSE = 16, 8, 1 << 11  # NFT_CTX_OUTPUT_JSON, NFT_CTX_OUTPUT_HANDLE, NFT_CTX_OUTPUT_TERSE


def works() -> str:
    """Empty, or the reason why nftables cannot be used on this host.

    Raises: KernelRefused for an error that may pass: no reason to fall back to iptables, or to leak anything.
    """
    number = nfnetlink.refusal()
    if number in nfnetlink.NO_NFTABLES:
        return f"this kernel has no nftables ({posix.strerror(number)})"
    if number in (EPERM, EACCES):
        return f"the kernel refuses: {posix.strerror(number)}"
    if number:
        raise KernelRefused(f'could not read: "nft list table {ownership.TABLE}"', posix.strerror(number), errno=number)
    try:
        with borrowed():
            return ""
    except NotAvailable as error:
        return error.msg


def retry(delete: Callable[[], T]) -> T:
    """Return the result of a deletion, which reads what it deletes.

    Called again where another process may have deleted the same since it was read. Raises: KernelRefused.
    """
    for _ in range(TRIES - 1):
        try:
            return delete()
        except KernelRefused as error:
            if error.errno not in CHANGED:
                raise
    return delete()


def deletable(name: str) -> bool:
    """Return whether an object of this name exists that this host can change; one that it cannot must not block a DEL.

    Raises: KernelRefused.
    """
    if not nfnetlink.exists(name):
        return False
    reason = works()
    if reason:
        note(f'"{name}" is not deleted, if it exists: {reason}')
    return not reason


class Nft:
    """A libnftables context. Raises: NotAvailable if the library cannot be loaded."""

    def __init__(self) -> None:
        from cni_py.c_library import Library, c_char_p, c_uint, c_void_p

        try:
            library = Library(LIBRARY)
        except OSError as error:
            raise NotAvailable(f"{LIBRARY} cannot be loaded: {error}", hint="install nftables") from error
        library.nft_ctx_new.restype = c_void_p
        context = library.nft_ctx_new(c_uint(0))
        if not context:
            raise NotAvailable(f"{LIBRARY} cannot open a netlink socket")
        self._library, self._context = library, c_void_p(context)
        library.nft_ctx_get_output_buffer.restype = library.nft_ctx_get_error_buffer.restype = c_char_p
        library.nft_ctx_buffer_output(self._context)
        library.nft_ctx_buffer_error(self._context)

    def close(self) -> None:
        self._library.nft_ctx_free(self._context)

    def _command(self, text: str, flags: int = 0) -> bytes:
        """Run commands. Raises: OSError with the first line of the library's error."""
        self._library.nft_ctx_output_set_flags(self._context, flags)
        failed = self._library.nft_run_cmd_from_buffer(self._context, text.encode(errors="surrogateescape"))
        output: bytes = self._library.nft_ctx_get_output_buffer(self._context)
        words: bytes = self._library.nft_ctx_get_error_buffer(self._context)
        if failed:
            line = words.decode(errors="replace").partition("\n")[0].removeprefix("Error: ")
            raise OSError(_number_in(line), line)
        return output

    def run(self, text: str) -> None:
        """Run one transaction, as one line of the journal. Raises: KernelRefused."""
        with step("nft", *_words(text)):
            self._command(text)

    def read(self, text: str, flags: int = 0) -> bytes | None:
        """Return the output of a ``list`` or ``get`` command; None if the object does not exist. Raises: KernelRefused."""
        try:
            return self._command(text, flags)
        except OSError as error:
            if error.errno == ENOENT:
                return None
            raise KernelRefused(f'could not read: "nft {text}"', error.strerror or "", errno=error.errno or 0) from error

    def list_json(self, text: str) -> list[dict[str, Any]]:
        """Return the objects of a ``list`` command, rules with their handles; empty if the object does not exist."""
        output = self.read(text, _JSON | _HANDLES)
        if not output:
            return []
        with without_init("pydantic_core"):
            from pydantic_core._pydantic_core import from_json
        found: list[dict[str, Any]] = from_json(output)["nftables"]
        return found

    def rules(self, chain: str) -> list[dict[str, Any]]:
        """The rules of ``family table chain``: nft's JSON objects."""
        return [entry["rule"] for entry in self.list_json(f"list chain {chain}") if "rule" in entry]

    def rule_lines(self, chain: str) -> list[str] | None:
        """The rules of ``family table chain`` as nft prints them; None if the chain does not exist."""
        output = self.read(f"list chain {chain}")
        if output is None:
            return None
        inside = output.decode(errors="replace").partition("\tchain ")[2].partition("\n\t}")[0]
        return [line.strip() for line in inside.splitlines()[1:] if not line.startswith("\t\ttype ")]

    def chain_lines(self, table: str) -> dict[str, list[str]]:
        """The rules of every chain of a table as nft prints them, by the chain's name; elements are not read."""
        output = self.read(f"list table {table}", _TERSE) or b""
        chains = {}
        for block in output.decode(errors="replace").split("\n\tchain ")[1:]:
            name, _, inside = block.partition(" {")
            lines = inside.partition("\n\t}")[0].splitlines()
            chains[name] = [line.strip() for line in lines if line and not line.startswith("\t\ttype ")]
        return chains


def read_ruleset() -> tuple[list[dict[str, Any]], dict[tuple[str, str, str, int], str]]:
    """Return all objects of the thread's namespace, and each rule as nft prints it, by family, table, chain and handle.

    It has a context of its own: one of the pool belongs to another namespace. Raises: KernelRefused, NotAvailable.
    """
    nft = Nft()
    try:
        objects, text = nft.list_json("list ruleset"), nft.read("list ruleset", _HANDLES | _TERSE) or b""
    finally:
        nft.close()
    lines = list(_lines_of(_with_extensions(objects, text).decode(errors="replace")))
    devices = {(family, table, chain): _quoted(line) for family, table, chain, line in lines if " device" in line}
    for of in (entry["chain"] for entry in objects if "chain" in entry):
        of.setdefault("dev", devices.get((of["family"], of["table"], of["name"]), []))  # nft 1.0.6 leaves it out of its JSON
    rules = {}
    for family, table, chain, line in lines:
        rule, _, handle = line.rpartition(" # handle ")
        if handle.isdecimal():
            rules[family, table, chain, int(handle)] = rule
    return objects, rules


def _with_extensions(objects: Sequence[Mapping[str, Any]], text: bytes) -> bytes:
    """Return the text of the rules with the parameters of iptables' extensions, which the JSON leaves out.

    libxtables keeps one extension of a name for a process, and prints nothing for a rule of the other family that has it too
    ("XT target DNAT not found"). So a process for each family prints it, if there is the program.
    """
    rules = (entry["rule"] for entry in objects if "rule" in entry)
    families = {of["family"] for of in rules if any("xt" in expression for expression in of.get("expr", ()))}
    return text + b"".join(b"\n" + _printed(family) for family in sorted(families))


def _printed(family: str) -> bytes:
    """The rules of a family as the program prints them; nothing if it fails, or does not exist."""
    from cni_py import program

    path = program.find_system("nft")
    if path is None:
        return b""
    status, output = program.run_quietly([path, "-a", "-t", "list", "ruleset", family], _PRINTED_BYTES)
    return output if status == 0 else b""


def _lines_of(text: str) -> Iterator[tuple[str, str, str, str]]:
    """The lines in the chains of ``nft -a list ruleset``, each with family, table and chain."""
    family = table = chain = ""
    for line in text.splitlines():
        if line.startswith("table "):
            family, table = line.split()[1:3]
        elif line.startswith("\tchain "):
            chain = line.split()[1]
        elif line.startswith("\t\t") and chain:
            yield family, table, chain, line.strip()
        else:
            chain = ""


def _quoted(line: str) -> list[str]:
    """The names between quotation marks."""
    return line.split('"')[1::2]


def _words(text: str) -> list[str]:
    """Return the text as arguments of ``nft``: a list of commands is one word, a single command several."""
    if "; " in text:
        return [text]
    head, brace, tail = text.partition("{")
    return [*head.split(), *([brace + tail] if brace else [])]


def _number_in(line: str) -> int:
    """Return the error number whose message is in the line; libnftables returns none."""
    from errno import errorcode

    return next((number for number in errorcode if posix.strerror(number) in line), EINVAL)


def delete_elements(
    names: Sequence[str], text_of: Callable[[bytes], str], selects: Callable[[str], bool], holding: str = ""
) -> dict[str, list[Element]]:
    """Delete elements of these sets and maps in one transaction; absence is success. Returns: what was deleted.

    The chains of :data:`ownership.TABLE` that no other element leads to are deleted with them: each transaction
    that deletes something costs the process 10 ms when it ends (:mod:`cni_py.netlink.netfilter`).

    Args:
        text_of: an element's key in the syntax of nft.
        selects: called with an element's comment; with ``holding`` only if that text is in it.
    """
    refused = 0
    for tries_left in reversed(range(TRIES)):
        found = {name: [of for of in nfnetlink.elements(name, holding) if selects(of.comment)] for name in names}
        keys = {name: [of.key for of in some] for name, some in found.items() if some}
        if not keys:
            break
        commands = [f"delete element {name} {{ {', '.join(map(text_of, some))} }}" for name, some in keys.items()]
        unused = [] if refused == EBUSY else _unused_without(of.target for some in found.values() for of in some if of.target)
        try:
            with step("nft", *_words("; ".join(commands + _deletions(unused)))):
                nfnetlink.change_elements(keys, {}, ownership.TABLE, unused)
        except KernelRefused as error:  # another process may have flushed the ruleset, or used a chain, since it was read
            if error.errno not in (ENOENT, EBUSY) or not tries_left:
                raise
            refused = error.errno
            continue
        if any(chain.startswith(ownership.IF) for chain in unused):  # its rule was the last to lead to another
            delete_unused_chains()
        break
    return found


def _unused_without(targets: Iterable[str]) -> list[str]:
    """Return the chains that are unused without elements that lead to ``targets``. Raises: KernelRefused."""
    gone: dict[str, int] = {}
    for target in targets:
        gone[target] = gone.get(target, 0) + 1
    # usually others lead to the same chain: then the rest of the table is not read
    if any(nfnetlink.is_unreferenced(f"{ownership.TABLE} {chain}", but_for=count) for chain, count in gone.items()):
        return unused_chains(gone)
    return []


def delete_unused_chains() -> None:
    """Delete the chains that attachments share and none of them uses any more. Raises: KernelRefused.

    The kernel counts the references to a chain, its rules among them. The caller holds the lock, under which ADD looks for a
    chain and refers to it; where there is no lock, the kernel refuses to delete a chain that is in use, and it stays.
    """
    while names := unused_chains():
        try:
            with step("nft", "; ".join(_deletions(names))):
                nfnetlink.delete_chains(ownership.TABLE, names)
        except KernelRefused as error:
            if error.errno not in (EBUSY, ENOENT):
                raise
            note(f"chains kept: another process uses or has deleted one of them: {error.details}")
            return


def _deletions(chains: Sequence[str]) -> list[str]:
    return [f"{verb} chain {ownership.TABLE} {name}" for verb in ("flush", "delete") for name in chains]


def unused_chains(gone: Mapping[str, int] | None = None) -> list[str]:
    """Return the names of shared chains that only their rules refer to, and of those of marks that no chain sets.

    Args:
        gone: references to a chain that are not counted, their number by its name.
    """
    uses = nfnetlink.chain_uses(ownership.TABLE)
    own = dict(gone or {})  # and those of its own rules, which do not keep a chain either
    for name, _, _ in nfnetlink.rule_contents(ownership.TABLE) if uses else ():
        own[name] = own.get(name, 0) + 1
    shared = (ownership.BEYOND, ownership.IF, ownership.MARK)
    unused = [name for name, use in uses.items() if name.startswith(shared) and use <= own.get(name, 0)]
    marks = {name.partition("-")[0] for name in uses if name.startswith(ownership.MARK) and name not in unused}
    of_marks = [name for name in uses if name.startswith(ownership.MASQUERADE_MARK)]
    return unused + [name for name in of_marks if name.partition("-")[2] not in marks]


def change(stale: Mapping[str, Sequence[bytes]], wanted: Mapping[str, Sequence[Element]], text: str) -> None:
    """Delete and add elements in one transaction without the library; ``text`` is the equivalent in nft's syntax.

    Raises: KernelRefused, ENOENT if an element to delete, a set or a chain does not exist.
    """
    with step("nft", *_words(text)):
        nfnetlink.change_elements(stale, wanted)


def by_name(pairs: Iterable[tuple[str, T]]) -> dict[str, list[T]]:
    """Group by set or map, for :func:`change`."""
    found: dict[str, list[T]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return found


_idle: list[Nft] = []
posix.register_at_fork(after_in_child=_idle.clear)  # a context has a netlink socket, which two processes must not share


class borrowed:  # noqa: N801 — reads as a statement: with borrowed() as nft: …
    """A context of the pool, created if none is idle. Raises: NotAvailable."""

    def __enter__(self) -> Nft:
        try:
            self.nft = _idle.pop()
        except IndexError:
            self.nft = Nft()
        return self.nft

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _idle.append(self.nft)
