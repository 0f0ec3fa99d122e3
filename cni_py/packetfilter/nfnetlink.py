"""nftables through our own netlink messages: queries, and changes of elements.

Tables and chains go through libnftables (``libnftables.py``), queries do not: it reads every element of a table to
list one of its chains, so that its time grows with the pods (1.4 ms to list a map of 240
in JSON, 0.35 for one chain). Here a chain costs 0.02 ms whatever else the kernel holds. Elements, which are all
that most calls change, are written as they are read, in half of the library's time; a DEL does not load it (3 ms).
See docs/decisions/0011-nftables.md.

Names are those of ``nft``: ``inet cni_py``, ``ip nat CNI-…``, ``inet cni_py masq4``.

Source: linux/netfilter/nf_tables.h, net/netfilter/nf_tables_api.c.
"""

from __future__ import annotations

from errno import EAFNOSUPPORT, EINVAL, ENOENT, EOPNOTSUPP, EPROTONOSUPPORT

from cni_py.netlink import netfilter
from cni_py.netlink.attributes import decode, encode, items
from cni_py.netlink.constants import (
    NFNL_SUBSYS_NFTABLES,
    NFPROTO_BRIDGE,
    NFPROTO_INET,
    NFPROTO_IPV4,
    NFPROTO_IPV6,
    NFT_GOTO,
    NFT_JUMP,
    NFT_MSG_DELCHAIN,
    NFT_MSG_DELRULE,
    NFT_MSG_DELSETELEM,
    NFT_MSG_DELTABLE,
    NFT_MSG_GETCHAIN,
    NFT_MSG_GETRULE,
    NFT_MSG_GETSETELEM,
    NFT_MSG_GETTABLE,
    NFT_MSG_NEWSETELEM,
    NFT_MSG_NEWTABLE,
    NFT_NAME_MAXLEN,
    NLM_F_CREATE,
)
from cni_py.netlink.socket import unreadable
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cni_py.netlink.attributes import Message
    from cni_py.netlink.netfilter import Change

NO_NFTABLES = (EINVAL, EPROTONOSUPPORT, EOPNOTSUPP, EAFNOSUPPORT)
"""Errors of a kernel without nf_tables."""
MAX_NAME = NFT_NAME_MAXLEN - 1  # without the zero byte
_FAMILIES = {"inet": NFPROTO_INET, "ip": NFPROTO_IPV4, "bridge": NFPROTO_BRIDGE, "ip6": NFPROTO_IPV6}
_NFTABLES = NFNL_SUBSYS_NFTABLES << 8
_MESSAGES = {
    NFT_MSG_GETTABLE: "nft_table_msg",
    NFT_MSG_GETCHAIN: "nft_chain_msg",
    NFT_MSG_GETRULE: "nft_rule_msg",
    NFT_MSG_GETSETELEM: "nft_set_elem_list_msg",
}
_AT_A_TIME = 1000

RuleContent = tuple[str, int, bytes]
"""Chain, handle, and content of the rule."""


class Element(Value):
    """An element of a set or map: its key in bytes, its comment; of a verdict map the chain, of another its data.

    ``jumps``: the verdict is jump; otherwise goto.
    """

    key: bytes
    comment: str
    target: str = ""
    data: bytes = b""
    jumps: bool = False


class BaseChain(Value):
    """A base chain. ``name`` in nft's form: family, table, chain."""

    name: str
    handle: int
    hook: int
    priority: int
    policy: int


# ---- tables and chains ------------------------------------------------------------------------


def refusal() -> int:
    """Return the error number with which the kernel rejects nftables tables of the family inet; 0 if it supports them.

    A kernel without CONFIG_NF_TABLES_INET says of such a table that it does not exist, as of any other, and refuses
    to create one. So one is created, in a transaction that fails: no process ever sees it.
    """
    try:
        netfilter.get(_NFTABLES | NFT_MSG_GETTABLE, _encode("inet", NFT_MSG_GETTABLE, {"NFTA_TABLE_NAME": "cni_py"}))
    except OSError as error:
        if error.errno != ENOENT:
            return error.errno or EINVAL
    else:
        return 0
    absent = _encode("inet", NFT_MSG_GETTABLE, {"NFTA_TABLE_NAME": "cni_py" + "-" * 20})
    table = _encode("inet", NFT_MSG_GETTABLE, {"NFTA_TABLE_NAME": "cni_py"})
    try:
        changes = (table, _NFTABLES | NFT_MSG_NEWTABLE, NLM_F_CREATE), (absent, _NFTABLES | NFT_MSG_DELTABLE, 0)
        netfilter.transact(NFNL_SUBSYS_NFTABLES, changes)
    except OSError as error:
        return 0 if error.errno == ENOENT else error.errno or EINVAL
    return 0


def exists(name: str) -> bool:
    """Return whether this table (two words) or chain (three) exists. A kernel without nftables has none.

    Raises: KernelRefused if that is unknown (without privileges, for example).
    """
    if len(name) > MAX_NAME:
        return False
    _, table, *chain = name.split(" ", 2)
    if chain:
        return bool(_ask(name, NFT_MSG_GETCHAIN, {"NFTA_CHAIN_TABLE": table, "NFTA_CHAIN_NAME": chain[0]}))
    return bool(_ask(name, NFT_MSG_GETTABLE, {"NFTA_TABLE_NAME": table}))


def is_awake_with(table: str, uses: int) -> bool:
    """Return whether the table is not dormant and has this many chains, sets and other objects. Raises: KernelRefused."""
    found = _ask(table, NFT_MSG_GETTABLE, {"NFTA_TABLE_NAME": table.split(" ", 1)[1]})
    return any((of.get("NFTA_TABLE_FLAGS", 0), of.get("NFTA_TABLE_USE")) == (0, uses) for of in found)


def chain_uses(table: str, chain: str = "") -> dict[str, int]:
    """Return the references to each chain of the table, or to one, by its name: its rules, and what leads to it.

    Raises: KernelRefused.
    """
    _, name = table.split(" ", 1)
    question = {"NFTA_CHAIN_TABLE": name, "NFTA_CHAIN_NAME": chain} if chain else {}
    found = _ask(table, NFT_MSG_GETCHAIN, question, is_dump=not chain)
    return {of["NFTA_CHAIN_NAME"]: of.get("NFTA_CHAIN_USE", 0) for of in found if of.get("NFTA_CHAIN_TABLE") == name}


def is_unreferenced(chain: str, but_for: int = 0) -> bool:
    """Return whether the chain exists and only its rules, and ``but_for`` others, refer to it. Raises: KernelRefused."""
    family, table, name = chain.split(" ", 2)
    uses = chain_uses(f"{family} {table}", name)
    return name in uses and uses[name] <= len(rule_handles(chain)) + but_for


def delete_chains(table: str, names: Sequence[str]) -> None:
    """Delete chains with their rules in one transaction. Raises: OSError with the kernel's number, EBUSY if one is in use."""
    netfilter.transact(NFNL_SUBSYS_NFTABLES, _deletions(table, names))


def _deletions(table: str, names: Sequence[str]) -> list[Change]:
    """The changes that delete chains: the rules of all first, since one chain's rule may refer to another."""
    family, name = table.split(" ", 1)
    rules = [{"NFTA_RULE_TABLE": name, "NFTA_RULE_CHAIN": chain} for chain in names]
    chains = [{"NFTA_CHAIN_TABLE": name, "NFTA_CHAIN_NAME": chain} for chain in names]
    return [
        *((_encode(family, NFT_MSG_GETRULE, of), _NFTABLES | NFT_MSG_DELRULE, 0) for of in rules),
        *((_encode(family, NFT_MSG_GETCHAIN, of), _NFTABLES | NFT_MSG_DELCHAIN, 0) for of in chains),
    ]


def base_chain(name: str) -> BaseChain | None:
    """Return the chain of this name, if it is a base chain. Raises: KernelRefused."""
    family, table, chain = name.split(" ", 2)
    found = _ask(name, NFT_MSG_GETCHAIN, {"NFTA_CHAIN_TABLE": table, "NFTA_CHAIN_NAME": chain})
    return next((_base_chain(family, of) for of in found if "NFTA_CHAIN_HOOK" in of), None)


def base_chains(hook: int) -> list[BaseChain]:
    """The chains on this hook, of IPv4, IPv6 and both. Raises: KernelRefused."""
    found = [(family, of) for family in ("inet", "ip", "ip6") for of in _ask(family, NFT_MSG_GETCHAIN, {}, is_dump=True)]
    chains = [_base_chain(family, of) for family, of in found if "NFTA_CHAIN_HOOK" in of]
    return [chain for chain in chains if chain.hook == hook]


def _base_chain(family: str, found: Message) -> BaseChain:
    hook = found["NFTA_CHAIN_HOOK"]
    return BaseChain(
        name=f"{family} {found['NFTA_CHAIN_TABLE']} {found['NFTA_CHAIN_NAME']}",
        handle=found.get("NFTA_CHAIN_HANDLE", 0),
        hook=hook.get("NFTA_HOOK_HOOKNUM", 0),
        priority=hook.get("NFTA_HOOK_PRIORITY", 0),
        policy=found.get("NFTA_CHAIN_POLICY", 0),
    )


# ---- rules ------------------------------------------------------------------------------------


def rule_comments(chain: str) -> list[str]:
    """The comments of the chain's rules, in order, empty if a rule has none. Raises: KernelRefused."""
    return [comment for _, comment in rule_handles(chain)]


def rule_handles(chain: str) -> list[tuple[int, str]]:
    """Handle and comment of each rule of the chain, in order. Raises: KernelRefused."""
    _, table, name = chain.split(" ", 2)
    rules = _ask(chain, NFT_MSG_GETRULE, {"NFTA_RULE_TABLE": table, "NFTA_RULE_CHAIN": name}, is_dump=True)
    return [(rule["NFTA_RULE_HANDLE"], _comment(rule.get("NFTA_RULE_USERDATA", b""))) for rule in rules]


def rule_contents(table: str, chain: str = "") -> list[RuleContent]:
    """The rules of a table, or of one chain of it, in order; equal if and only if none was changed. Raises: KernelRefused.

    ``nft replace`` and ``iptables -R`` keep a rule's handle, so handles alone are not sufficient.
    """
    _, name = table.split(" ", 1)
    answers = _answers(table, NFT_MSG_GETRULE, {"NFTA_RULE_TABLE": name, "NFTA_RULE_CHAIN": chain or None}, is_dump=True)
    found = [(decode("nft_rule_msg", answer), answer) for answer in answers]
    return [_content(rule, answer) for rule, answer in found if rule.get("NFTA_RULE_TABLE") == name]


def _content(rule: Message, answer: bytes) -> RuleContent:
    """Return the rule's content without counters, whose values are not a change."""
    expressions = items("nft_rule_msg", answer, "NFTA_RULE_EXPRESSIONS")
    kept = [of for of in expressions if decode("nft_expr", of).get("NFTA_EXPR_NAME") != "counter"]
    return rule.get("NFTA_RULE_CHAIN", ""), rule["NFTA_RULE_HANDLE"], b"".join(kept) + rule.get("NFTA_RULE_USERDATA", b"")


# ---- elements ---------------------------------------------------------------------------------


def elements(name: str, holding: str = "") -> list[Element]:
    """Return the elements of a set or map; empty if it does not exist. Raises: KernelRefused.

    Args:
        holding: only those that contain this text: the others are not decoded, and cost nearly nothing.
    """
    return _elements(_answers(name, NFT_MSG_GETSETELEM, _set(name), is_dump=True), holding.encode())


def element(name: str, key: bytes) -> Element | None:
    """One element by its key. Raises: KernelRefused."""
    question = _set(name) | {"NFTA_SET_ELEM_LIST_ELEMENTS": [_key(key)]}
    return next(iter(_elements(_answers(name, NFT_MSG_GETSETELEM, question))), None)


def comments_in(message: bytes) -> list[str]:
    """The comments of the elements in a message or notification, "" for one without."""
    return [decoded.comment for decoded in _elements([message])]


def change_elements(
    stale: Mapping[str, Sequence[bytes]], wanted: Mapping[str, Sequence[Element]], table: str = "", unused: Sequence[str] = ()
) -> None:
    """Delete elements by their keys and add others, those of each set or map: one transaction, all of it or nothing.

    More than a thousand of a set are as many transactions. An element that exists already is success.

    Args:
        unused: chains of ``table`` that lead nowhere without the deleted elements: they go with the last of these.

    Raises: OSError with the kernel's number, ENOENT where one that is to be deleted, its set or its chain does not exist,
    EBUSY if one of the chains is in use.
    """
    old = {name: [_key(key) for key in keys] for name, keys in stale.items()}
    new = {name: [_message(element) for element in elements] for name, elements in wanted.items()}
    count = max([*map(len, old.values()), *map(len, new.values())], default=0)
    for start in range(0, count, _AT_A_TIME):
        part = slice(start, start + _AT_A_TIME)
        changes = [_change(NFT_MSG_DELSETELEM, 0, name, some[part]) for name, some in old.items() if some[part]]
        changes += [_change(NFT_MSG_NEWSETELEM, NLM_F_CREATE, name, some[part]) for name, some in new.items() if some[part]]
        if unused and part.stop >= count:
            changes += _deletions(table, unused)
        netfilter.transact(NFNL_SUBSYS_NFTABLES, changes)


def _change(kind: int, flags: int, name: str, some: Sequence[Message]) -> Change:
    message = _set(name) | {"NFTA_SET_ELEM_LIST_ELEMENTS": some}
    return _encode(name, NFT_MSG_GETSETELEM, message), _NFTABLES | kind, flags


def _set(name: str) -> Message:
    _, table, of_set = name.split(" ", 2)
    return {"NFTA_SET_ELEM_LIST_TABLE": table, "NFTA_SET_ELEM_LIST_SET": of_set}


def _key(key: bytes) -> Message:
    return {"NFTA_SET_ELEM_KEY": {"NFTA_DATA_VALUE": key}}


def _message(element: Element) -> Message:
    """The reverse of :func:`_element`."""
    message = _key(element.key)
    if element.target:
        verdict = {"NFTA_VERDICT_CODE": NFT_JUMP if element.jumps else NFT_GOTO, "NFTA_VERDICT_CHAIN": element.target}
        message["NFTA_SET_ELEM_DATA"] = {"NFTA_DATA_VERDICT": verdict}
    elif element.data:
        message["NFTA_SET_ELEM_DATA"] = {"NFTA_DATA_VALUE": element.data}
    if element.comment:
        text = element.comment.encode(errors="surrogateescape") + b"\0"
        message["NFTA_SET_ELEM_USERDATA"] = bytes([_UDATA_COMMENT, len(text)]) + text
    return message


def _elements(answers: list[bytes], holding: bytes = b"") -> list[Element]:
    """The elements with these bytes in them."""
    listed = [items("nft_set_elem_list_msg", of, "NFTA_SET_ELEM_LIST_ELEMENTS") for of in answers if holding in of]
    return [_element(decode("set_elem", item)) for some in listed for item in some if holding in item]


def _element(found: Message) -> Element:
    data = found.get("NFTA_SET_ELEM_DATA", {})
    verdict = data.get("NFTA_DATA_VERDICT", {})
    return Element(
        found["NFTA_SET_ELEM_KEY"].get("NFTA_DATA_VALUE", b""),
        _comment(found.get("NFTA_SET_ELEM_USERDATA", b"")),
        verdict.get("NFTA_VERDICT_CHAIN", ""),
        data.get("NFTA_DATA_VALUE", b""),
        verdict.get("NFTA_VERDICT_CODE") == NFT_JUMP,
    )


_UDATA_COMMENT = 0


def _comment(userdata: bytes) -> str:
    """Read libnftnl's user data, of a rule or an element: type, length, value."""
    at = 0
    while at + 2 <= len(userdata):
        kind, length = userdata[at], userdata[at + 1]
        if kind == _UDATA_COMMENT:
            return userdata[at + 2 : at + 2 + length].rstrip(b"\0").decode(errors="surrogateescape")
        at += 2 + length
    return ""


# ---- messages ---------------------------------------------------------------------------------


def _ask(name: str, kind: int, question: Message, is_dump: bool = False) -> list[Message]:
    return [decode(_MESSAGES[kind], answer) for answer in _answers(name, kind, question, is_dump)]


def _answers(name: str, kind: int, question: Message, is_dump: bool = False) -> list[bytes]:
    """One object or all; none where it, or nftables, does not exist. Raises: KernelRefused."""
    message = _encode(name, kind, question)
    try:
        return netfilter.dump(_NFTABLES | kind, message) if is_dump else [netfilter.get(_NFTABLES | kind, message)]
    except OSError as error:
        if error.errno == ENOENT or error.errno in NO_NFTABLES:
            return []
        raise unreadable(f'could not read "{name}" of nftables', error) from error


def _encode(name: str, kind: int, message: Message) -> bytes:
    return encode(_MESSAGES[kind], {"nfgen_family": _FAMILIES[name.partition(" ")[0]], **message})
