"""nftables by netlink messages of our own: what is there, whose it is, and elements that come and go.

Tables and chains go through libnftables (``nft.py``), questions do not: it reads every element of a table to
answer about one chain of it, so that its answers grow with the pods (1.4 ms to list a map of 240
in JSON, 0.35 for one chain). Here a chain costs 0.02 ms whatever else is there. Elements, which are all
that most calls change, are written as they are read, in half of the library's time; a DEL does not load it (3 ms).

Things are named as ``nft`` names them: ``inet cni_py``, ``ip nat CNI-…``, ``inet cni_py masq4``.

Source of the numbers: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

from cni_py.netlink import netfilter
from cni_py.netlink.attributes import attribute, attributes, nested, text_of
from cni_py.netlink.constants import (
    NFNL_SUBSYS_NFTABLES,
    NFPROTO_BRIDGE,
    NFPROTO_INET,
    NFPROTO_IPV4,
    NFPROTO_IPV6,
    NFT_GOTO,
    NFT_JUMP,
    NFT_MSG_DELSETELEM,
    NFT_MSG_GETCHAIN,
    NFT_MSG_GETRULE,
    NFT_MSG_GETSETELEM,
    NFT_MSG_GETTABLE,
    NFT_MSG_NEWSETELEM,
    NFT_NAME_MAXLEN,
    NLM_F_CREATE,
)
from cni_py.netlink.socket import unreadable
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from cni_py.netlink.netfilter import Change

ENOENT, EINVAL = 2, 22
NO_NFTABLES = (EINVAL, 93, 95, 97)  # EPROTONOSUPPORT, EOPNOTSUPP, EAFNOSUPPORT: a kernel without nf_tables
MAX_NAME = NFT_NAME_MAXLEN - 1  # without the zero
_FAMILIES = {"inet": NFPROTO_INET, "ip": NFPROTO_IPV4, "bridge": NFPROTO_BRIDGE, "ip6": NFPROTO_IPV6}
_NFTABLES = NFNL_SUBSYS_NFTABLES << 8
_AT_A_TIME = 1000


class Element(Value):
    """An element of a set or map: its key in bytes, its comment; of a verdict map the chain, of another its data.

    ``jumps``: the packet comes back from the chain; else it goes there.
    """

    key: bytes
    comment: str
    target: str = ""
    data: bytes = b""
    jumps: bool = False


# ---- what can be asked ------------------------------------------------------------------------


def exists(name: str) -> bool:
    """Whether the kernel has this table (two words) or this chain (three). A kernel without nftables has none.

    Raises: KernelRefused where it does not say (no privilege, for one).
    """
    family, table, *chain = name.split(" ", 2)
    if len(name) > MAX_NAME:
        return False
    # NFTA_TABLE_NAME is 1; NFTA_CHAIN_TABLE is 1, NFTA_CHAIN_NAME is 3
    names = attribute(1, table) + b"".join([attribute(3, word) for word in chain])
    return bool(get(name, NFT_MSG_GETCHAIN if chain else NFT_MSG_GETTABLE, family, names))


def refusal() -> int:
    """The error number with which the kernel refuses to talk about nftables; 0: it does talk."""
    try:
        netfilter.get(_NFTABLES | NFT_MSG_GETTABLE, NFPROTO_INET, attribute(1, "cni_py"))
    except OSError as error:
        return 0 if error.errno == ENOENT else error.errno or EINVAL
    return 0


def rule_comments(chain: str) -> list[str]:
    """The comments of the chain's rules, in order, empty where a rule has none. Raises: KernelRefused."""
    return [comment for _, comment in rule_handles(chain)]


def rule_handles(chain: str) -> list[tuple[int, str]]:
    """Handle and comment of each rule of the chain, in order. Raises: KernelRefused."""
    family, table, name = chain.split(" ", 2)
    bodies = dump(chain, NFT_MSG_GETRULE, family, attribute(1, table) + attribute(2, name))
    rules = [dict(attributes(body)) for body in bodies]
    # NFTA_RULE_HANDLE, NFTA_RULE_USERDATA
    return [(int.from_bytes(rule.get(3, b""), "big"), _comment(rule.get(7, b""))) for rule in rules]


def elements(name: str, holding: str = "") -> list[Element]:
    """The elements of a set or map; none where it is not there. Raises: KernelRefused.

    Args:
        holding: only those with this text in them: what is not decoded costs nearly nothing.
    """
    family, table, of_set = name.split(" ", 2)
    bodies = dump(name, NFT_MSG_GETSETELEM, family, attribute(1, table) + attribute(2, of_set))
    return [element for body in bodies for element in _elements(body, holding.encode())]


def element(name: str, key: bytes) -> Element | None:
    """One element by its key. Raises: KernelRefused."""
    family, table, of_set = name.split(" ", 2)
    wanted = nested(3, _listed(_key_of(key)))  # NFTA_SET_ELEM_LIST_ELEMENTS
    bodies = get(name, NFT_MSG_GETSETELEM, family, attribute(1, table) + attribute(2, of_set) + wanted)
    return next((found for body in bodies for found in _elements(body)), None)


def change_elements(doomed: Mapping[str, Sequence[bytes]], wanted: Mapping[str, Sequence[Element]]) -> None:
    """Delete elements by their keys and add others, those of each set or map: one transaction, all of it or nothing.

    More than a thousand of a set are as many transactions. An element that is there already is success.

    Raises: OSError with the kernel's number, ENOENT where one that is to go, its set or its chain is not there.
    """
    listed = {name: [_listed(_key_of(key)) for key in keys] for name, keys in doomed.items()}
    added = {name: [_listed(_encoded(element)) for element in elements] for name, elements in wanted.items()}
    for start in range(0, max([*map(len, listed.values()), *map(len, added.values())], default=0), _AT_A_TIME):
        chunk = slice(start, start + _AT_A_TIME)
        messages = [_of_set(NFT_MSG_DELSETELEM, 0, name, items[chunk]) for name, items in listed.items() if items[chunk]]
        messages += [
            _of_set(NFT_MSG_NEWSETELEM, NLM_F_CREATE, name, items[chunk]) for name, items in added.items() if items[chunk]
        ]
        netfilter.transact(NFNL_SUBSYS_NFTABLES, messages)


def _of_set(kind: int, flags: int, name: str, items: Sequence[bytes]) -> Change:
    family, table, of_set = name.split(" ", 2)
    # NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS
    return _NFTABLES | kind, flags, _FAMILIES[family], attribute(1, table) + attribute(2, of_set) + nested(3, b"".join(items))


def _listed(element: bytes) -> bytes:
    return nested(1, element)  # NFTA_LIST_ELEM


def _key_of(key: bytes) -> bytes:
    return nested(1, attribute(1, key))  # NFTA_SET_ELEM_KEY > NFTA_DATA_VALUE


def _encoded(element: Element) -> bytes:
    """NFTA_SET_ELEM_KEY 1, DATA 2, USERDATA 6: the reverse of :func:`_elements`."""
    encoded = _key_of(element.key)
    if element.target:  # NFTA_DATA_VERDICT > NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN
        code = NFT_JUMP if element.jumps else NFT_GOTO
        encoded += nested(2, nested(2, attribute(1, code.to_bytes(4, "big", signed=True)) + attribute(2, element.target)))
    elif element.data:
        encoded += nested(2, attribute(1, element.data))
    if element.comment:
        text = element.comment.encode(errors="surrogateescape") + b"\0"
        encoded += attribute(6, bytes([0, len(text)]) + text)
    return encoded


# ---- messages ---------------------------------------------------------------------------------


def get(name: str, kind: int, family: str, body: bytes) -> list[bytes]:
    """One object's attributes; none where it, or nftables, is absent. Raises: KernelRefused."""
    return _unless_absent(name, lambda: [netfilter.get(_NFTABLES | kind, _FAMILIES[family], body)])


def dump(name: str, kind: int, family: str, body: bytes) -> list[bytes]:
    """The attributes of all objects; none where they, or nftables, are absent. Raises: KernelRefused."""
    return _unless_absent(name, lambda: netfilter.dump(_NFTABLES | kind, _FAMILIES[family], body))


def _unless_absent(name: str, ask: Callable[[], list[bytes]]) -> list[bytes]:
    try:
        return ask()
    except OSError as error:
        if error.errno == ENOENT or error.errno in NO_NFTABLES:
            return []
        raise unreadable(f'could not read "{name}" of nftables', error) from error


def _elements(body: bytes, holding: bytes = b"") -> Iterator[Element]:
    """NFTA_SET_ELEM_LIST_ELEMENTS > NFTA_LIST_ELEM > KEY 1, DATA 2, USERDATA 6."""
    for kind, value in attributes(body) if holding in body else ():
        for _, item in attributes(value) if kind == 3 else ():
            if holding not in item:
                continue
            parts = dict(attributes(item))
            key = dict(attributes(parts.get(1, b""))).get(1, b"")  # NFTA_DATA_VALUE
            data = dict(attributes(parts.get(2, b"")))
            verdict = dict(attributes(data.get(2, b"")))  # NFTA_DATA_VERDICT
            target = text_of(verdict.get(2, b""))  # NFTA_VERDICT_CHAIN
            jumps = verdict.get(1) == NFT_JUMP.to_bytes(4, "big", signed=True)
            yield Element(key, _comment(parts.get(6, b"")), target, data.get(1, b""), jumps)


def _comment(userdata: bytes) -> str:
    """libnftnl's user data: type, length, value; type 0 is the comment, of rules and of elements."""
    at = 0
    while at + 2 <= len(userdata):
        kind, length = userdata[at], userdata[at + 1]
        if kind == 0:
            return text_of(userdata[at + 2 : at + 2 + length])
        at += 2 + length
    return ""
