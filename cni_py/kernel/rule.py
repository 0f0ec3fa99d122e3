"""Policy rules: which table is searched for a packet's route, by the packet's source.

    list_rules(rtnl) -> list[Rule]      add_rule(rtnl, address, table)      delete_rule(rtnl, rule)

Source: linux net/core/fib_rules.c, include/uapi/linux/fib_rules.h.
"""

from __future__ import annotations

from errno import EAFNOSUPPORT, ENOENT, EOPNOTSUPP
from ipaddress import ip_network

from cni_py.journal import step
from cni_py.kernel.features import missing
from cni_py.netlink import socket as nl
from cni_py.netlink.attributes import decode, encode
from cni_py.netlink.constants import (
    FAMILY,
    FR_ACT_TO_TBL,
    NLM_F_CREATE,
    NLM_F_EXCL,
    RTM_DELRULE,
    RTM_GETRULE,
    RTM_NEWRULE,
)
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.kernel.address import Address, Network
    from cni_py.netlink.attributes import Message
    from cni_py.netlink.socket import Rtnl

_UNSUPPORTED = (EAFNOSUPPORT, EOPNOTSUPP)


class Rule(Value):
    """A rule that searches a table. ``source`` None: for every packet."""

    source: Network | None
    table: int
    priority: int
    version: int = 4

    @property
    def words(self) -> list[str]:
        """The words for ``ip rule``."""
        return ["from", str(self.source) if self.source else "all", "lookup", str(self.table)]


def list_rules(rtnl: Rtnl) -> list[Rule]:
    """The rules of both families that search a table. Raises: KernelRefused."""
    found = []
    for version, family in FAMILY.items():
        with nl.question(*rtnl.enter, "ip", f"-{version}", "rule", "show"):
            try:
                answers = rtnl.dump(encode("fibmsg", {"family": family}), RTM_GETRULE)
            except nl.NetlinkError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                continue
        found += [_rule_of(of, version) for of in (decode("fibmsg", answer) for answer in answers) if _searches(of, family)]
    return found


def _searches(of: Message, family: int) -> bool:
    return bool(of["family"] == family and of["action"] == FR_ACT_TO_TBL)


def _rule_of(of: Message, version: int) -> Rule:
    source = ip_network((of["FRA_SRC"], of["src_len"]), strict=False) if of.get("FRA_SRC") else None
    return Rule(source, of.get("FRA_TABLE") or of["table"], of.get("FRA_PRIORITY", 0), version)


def add_rule(rtnl: Rtnl, address: Address, table: int) -> None:
    """Search a table for packets from an address, before all rules that there are. Raises: KernelRefused, NotAvailable."""
    rule = Rule(ip_network(address), table, 0, address.version)
    with step(*rtnl.enter, "ip", f"-{rule.version}", "rule", "add", *rule.words):
        try:
            rtnl.change(_message(rule), RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL)
        except nl.NetlinkError as error:
            if error.errno in _UNSUPPORTED:
                raise missing("rule", str(error.strerror)) from error
            raise


def delete_rule(rtnl: Rtnl, rule: Rule) -> None:
    """Delete the rule; absence is success. Raises: KernelRefused."""
    priority = ["priority", str(rule.priority)] if rule.priority else []
    with step(*rtnl.enter, "ip", f"-{rule.version}", "rule", "del", *rule.words, *priority) as change:
        try:
            rtnl.change(_message(rule), RTM_DELRULE)
        except nl.NetlinkError as error:
            if error.errno not in (ENOENT, *_UNSUPPORTED):
                raise
            change.unchanged = True


def _message(rule: Rule) -> bytes:
    source = rule.source
    return encode(
        "fibmsg",
        {
            "family": FAMILY[rule.version],
            "src_len": source.prefixlen if source else 0,
            "table": rule.table if rule.table < 256 else 0,
            "action": FR_ACT_TO_TBL,
            "FRA_SRC": source.network_address.packed if source else None,
            "FRA_TABLE": rule.table,
            "FRA_PRIORITY": rule.priority or None,
        },
    )
