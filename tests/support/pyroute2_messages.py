"""The messages of netlink as pyroute2 encodes and decodes them, in the shape of ``cni_py/netlink/attributes.py``.

encoded("ifinfmsg", {"index": 7, "IFLA_MTU": 1450}) -> bytes        what follows the header of a message
decoded("ifinfmsg", data) -> dict                                   the attributes that tables.py has
"""

from __future__ import annotations

from base64 import b64encode
from importlib import import_module
from ipaddress import ip_address
from socket import AF_INET
from struct import pack, unpack_from
from typing import Any

from cni_py.netlink import attributes
from cni_py.netlink.attributes import _CHOSEN, _CORRECTIONS, Message
from cni_py.netlink.tables import TABLES

_MODULES = {
    "ctrlmsg": "pyroute2.netlink",
    "fibmsg": "pyroute2.netlink.rtnl.fibmsg",
    "ifaddrmsg": "pyroute2.netlink.rtnl.ifaddrmsg",
    "ifinfmsg": "pyroute2.netlink.rtnl.ifinfmsg",
    "ndmsg": "pyroute2.netlink.rtnl.ndmsg",
    "nfct_msg": "pyroute2.netlink.nfnetlink.nfctsocket",
    "nft_chain_msg": "pyroute2.netlink.nfnetlink.nftsocket",
    "nft_gen_msg": "pyroute2.netlink.nfnetlink.nftsocket",
    "nft_rule_msg": "pyroute2.netlink.nfnetlink.nftsocket",
    "nft_set_elem_list_msg": "pyroute2.netlink.nfnetlink.nftsocket",
    "nft_table_msg": "pyroute2.netlink.nfnetlink.nftsocket",
    "nsidmsg": "pyroute2.netlink.rtnl.nsidmsg",
    "rtmsg": "pyroute2.netlink.rtnl.rtmsg",
    "tcmsg": "pyroute2.netlink.rtnl.tcmsg",
    "wgmsg": "pyroute2.netlink.generic.wireguard",
}
MESSAGES = tuple(_MODULES)
"""The tables of whole messages; the others are of attributes."""
_ADDRESSES = ("ip4addr", "ip6addr", "ipaddr", "target")
_KEYS = ("parse_peer_key", "parse_wg_key")
_HEADER = 16


def _new(table: str, *data: bytes) -> Any:
    import pyroute2  # noqa: F401 — its modules import each other in a circle that only this order opens

    return getattr(import_module(_MODULES[table]), table)(*data)


def without_corrections(table: str, message: Message) -> Message:
    """The message without the attributes that pyroute2 lacks or encodes otherwise, at any depth."""
    kinds = {name: _chosen(kind.lstrip("*"), message) for name, (_, kind) in TABLES[table][1].items()}

    def inside(name: str, value: Any) -> Any:
        if kinds.get(name) not in TABLES or value is None:
            return value
        of = kinds[name]
        return [without_corrections(of, item) for item in value] if isinstance(value, list) else without_corrections(of, value)

    return {name: inside(name, value) for name, value in message.items() if name not in _CORRECTIONS.get(table, {})}


def encoded(table: str, message: Message) -> bytes:
    made = _new(table)
    for name, value in _theirs(table, message).items():
        made[name] = value
    made.encode()
    return bytes(made.data)[_HEADER:]


def decoded(table: str, data: bytes) -> Message:
    made = _new(table, pack("=IHHII", _HEADER + len(data), 0, 0, 0, 0) + data)
    made.decode()
    return _ours(table, made)


# ---- ours to theirs ---------------------------------------------------------------------------


def _theirs(table: str, message: Message) -> dict[str, Any]:
    fields, rows = TABLES[table]
    names = {name for name, _ in fields}
    out: dict[str, Any] = {name: message.get(name, 0) for name, form in fields if "x" not in form}
    attributes = [(name, value) for name, value in message.items() if name not in names and value is not None]
    kinds = {name: name if name == "IFLA_OPERSTATE" else rows[name][1] for name, _ in attributes}
    return out | {"attrs": [[name, _their_value(kinds[name], value, message)] for name, value in attributes]}


def _their_value(kind: str, value: Any, message: Message) -> Any:
    kind = _chosen(kind, message)
    if kind[0] == "*":
        return [_theirs("nh" if kind == "*get_nh" else kind[1:], item) for item in value]
    if kind in TABLES:
        theirs = _theirs(kind, value)
        return theirs if TABLES[kind][1] else {name: of for name, of in theirs.items() if name != "attrs"}
    to_theirs = (
        {"parse_endpoint": _endpoint, "IFLA_OPERSTATE": _state}
        | dict.fromkeys(_ADDRESSES, _text)
        | dict.fromkeys(_KEYS, _base64)
    )
    return to_theirs.get(kind, _same)(value)


def _text(packed: bytes) -> str:
    return str(ip_address(packed))


def _base64(key: bytes) -> dict[str, str]:
    return {"value": b64encode(key).decode()}


def _endpoint(address: bytes) -> dict[str, Any]:
    family, port = unpack_from("=H", address)[0], unpack_from("!H", address, 2)[0]
    return {"addr": _text(address[4:8] if family == AF_INET else address[8:24]), "port": port}


def _state(code: int) -> Any:
    return import_module("pyroute2.netlink.rtnl.ifinfmsg").state_by_code[code]


def _same(value: Any) -> Any:
    return value


def _chosen(kind: str, message: Message) -> str:
    if kind not in _CHOSEN:
        return kind
    member, kinds = _CHOSEN[kind]
    return kinds.get(message.get(member), "cdata")


# ---- theirs to ours ---------------------------------------------------------------------------


def _ours(table: str, theirs: Any) -> Message:
    fields, rows = TABLES[table]
    message: Message = {name: theirs[name] for name, form in fields if "x" not in form}
    for slot in theirs["attrs"]:
        if slot.name in rows and slot.name not in _CORRECTIONS.get(table, {}):
            kind = _chosen(rows[slot.name][1], message)
            message[slot.name] = (
                _raw(slot.cell[1]) if attributes._TYPES.get(kind) == attributes._RAW else _our_value(kind, slot.nla)
            )
    return message


def _raw(nla: Any) -> bytes:
    return bytes(nla.data[nla.offset + 4 : nla.offset + nla.length])


def _our_value(kind: str, nla: Any) -> Any:
    if kind[0] == "*":
        return [_ours("nh" if kind == "*get_nh" else kind[1:], item) for item in nla.value]
    if kind in TABLES:
        return _ours(kind, nla) if TABLES[kind][1] else {name: nla[name] for name, _ in TABLES[kind][0]}
    to_ours = {"flag": lambda _: True}
    to_ours |= dict.fromkeys(("asciiz", "l2addr", "lladdr"), lambda of: of.getvalue())
    return to_ours.get(kind, lambda of: of["value"])(nla)
