"""Traffic control of a link: token buckets, and a filter that redirects what comes in to another link.

How it works. A token bucket (tbf) shapes what a link sends. What a link receives cannot wait, so it is redirected to an ifb,
a link whose only purpose is to have a queue: an ``ingress`` queueing discipline on the one, a filter on that which
matches everything, a token bucket on the other.

    Shape(rate, burst)                                          bytes a second, bytes
    set_shape(rtnl, link, shape)                                find_shape(rtnl, link) -> Shape | None
    create_ifb(rtnl, name, mtu, alias)
    redirect(rtnl, link, to)                                    redirected_to(rtnl, link) -> int | None
    delete_root(rtnl, link)                                     delete_redirect(rtnl, link)

Source: linux net/sched/sch_tbf.c, sch_ingress.c, cls_u32.c, act_mirred.c; include/uapi/linux/pkt_sched.h.
"""

from __future__ import annotations

from errno import EEXIST, EINVAL, ENODEV, ENOENT, EOPNOTSUPP
from struct import Struct, pack, unpack_from

from cni_py.files import read
from cni_py.journal import quote, step
from cni_py.kernel.features import missing
from cni_py.kernel.link import find_link
from cni_py.netlink import socket as nl
from cni_py.netlink.attributes import attribute, attributes, decode, encode
from cni_py.netlink.constants import (
    ETH_P_ALL,
    IFF_UP,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    RTM_DELQDISC,
    RTM_DELTFILTER,
    RTM_GETQDISC,
    RTM_GETTFILTER,
    RTM_NEWLINK,
    RTM_NEWQDISC,
    RTM_NEWTFILTER,
    TC_ACT_STOLEN,
    TC_H_INGRESS,
    TC_H_ROOT,
    TC_LINKLAYER_ETHERNET,
    TC_U32_TERMINAL,
    TCA_ACT_KIND,
    TCA_ACT_OPTIONS,
    TCA_EGRESS_REDIR,
    TCA_MIRRED_PARMS,
    TCA_TBF_BURST,
    TCA_TBF_PARMS,
    TCA_TBF_RATE64,
    TCA_U32_ACT,
    TCA_U32_SEL,
)
from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.kernel.link import Link
    from cni_py.netlink.attributes import Message
    from cni_py.netlink.socket import Rtnl

HANDLE, INGRESS = 0x10000, 0xFFFF0000  # "1:" and "ffff:", in which filters have their parent
PRIORITY = 1
LATENCY_MICROSECONDS = 25_000
"""The longest time that a packet waits in the bucket."""
_MAX32 = 0xFFFFFFFF
_ALIAS_MAX = 255
_TBF = Struct("=BBHhHI12sIII")  # struct tc_tbf_qopt: tc_ratespec, the one of the peak, limit, buffer, mtu
_MIRRED = Struct("=IIiiiiI")  # struct tc_mirred
_FILTER_INFO = PRIORITY << 16 | int.from_bytes(ETH_P_ALL.to_bytes(2, "big"), "little")
_tick: list[float] = []


class Shape(Value):
    """A token bucket: bytes a second, and the bytes that may pass at once after a pause."""

    rate: int
    burst: int

    @property
    def limit(self) -> int:
        """Bytes that may wait: what passes in the latency, and a burst. Go-compatible: bandwidth/ifb_creator.go."""
        return min(self.rate * LATENCY_MICROSECONDS // 1_000_000 + self.burst, _MAX32)

    @property
    def ticks(self) -> int:
        """The burst as the kernel takes it: the time that it takes at this rate."""
        return int(self.burst * 1_000_000 // self.rate * _ticks_per_microsecond())

    @property
    def words(self) -> tuple[str, ...]:
        """The arguments of ``tc``, in which "bps" is bytes a second."""
        return "tbf", "rate", f"{self.rate}bps", "burst", str(self.burst), "limit", str(self.limit)


def _ticks_per_microsecond() -> float:
    """The kernel's unit of time in queueing disciplines."""
    if not _tick:
        words = [int(word, 16) for word in read("/proc/net/psched").split()]
        _tick.append(words[0] / words[1] * (words[2] / 1_000_000))
    return _tick[0]


# ---- token buckets ----------------------------------------------------------------------------


def set_shape(rtnl: Rtnl, link: Link, shape: Shape) -> None:
    """Give the link a token bucket, in place of the queueing discipline that it has. Raises: KernelRefused, NotAvailable."""
    message = {"index": link.ifindex, "handle": HANDLE, "parent": TC_H_ROOT, "TCA_KIND": "tbf", "TCA_OPTIONS": _tbf(shape)}
    with step(*rtnl.enter, "tc", "qdisc", "replace", "dev", link.name, "root", "handle", "1:", *shape.words):
        _change(rtnl, message, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, "tbf")


def find_shape(rtnl: Rtnl, link: Link) -> Shape | None:
    """Return the token bucket of the link, None if it has none. Raises: KernelRefused."""
    for of in _qdiscs(rtnl, link):
        if (of.get("TCA_KIND"), of["parent"], of["handle"]) == ("tbf", TC_H_ROOT, HANDLE):
            return _shape_of(dict(attributes(of.get("TCA_OPTIONS", b""))))
    return None


def delete_root(rtnl: Rtnl, link: Link) -> None:
    """Give the link its default queueing discipline again; absence is success. Raises: KernelRefused."""
    with step(*rtnl.enter, "tc", "qdisc", "del", "dev", link.name, "root") as change:
        change.unchanged = not _delete(rtnl, {"index": link.ifindex, "parent": TC_H_ROOT}, RTM_DELQDISC)


def _tbf(shape: Shape) -> bytes:
    ticks = shape.ticks
    rate = min(shape.rate, _MAX32)
    # no overhead, no alignment of cells, no smallest packet: the kernel computes the time of a packet from the rate
    params = _TBF.pack(0, TC_LINKLAYER_ETHERNET, 0, -1, 0, rate, bytes(12), shape.limit, min(ticks, _MAX32), 0)
    options = attribute(TCA_TBF_PARMS, params)
    if shape.rate > _MAX32:
        options += attribute(TCA_TBF_RATE64, pack("=Q", shape.rate))
    if not 0 < ticks <= _MAX32:  # then only the bytes say it. Not else: the kernel's own conversion loses a tick
        options += attribute(TCA_TBF_BURST, pack("=I", shape.burst))
    return options


def _shape_of(options: dict[int, bytes]) -> Shape:
    *_, low, _, _, ticks, _ = _TBF.unpack_from(options[TCA_TBF_PARMS])
    rate = unpack_from("=Q", options[TCA_TBF_RATE64])[0] if TCA_TBF_RATE64 in options else low
    return Shape(rate, round(ticks / _ticks_per_microsecond() * rate / 1_000_000))


def is_same(found: Shape | None, expected: Shape) -> bool:
    """Return whether the kernel's token bucket is the expected one, but for what it rounds: a burst is a time to it."""
    if found is None or found.rate != expected.rate:
        return False
    rounding = 2 + expected.rate // 1_000_000 + expected.burst // 1000
    return expected.ticks > _MAX32 or abs(found.burst - expected.burst) <= rounding


# ---- an ifb -----------------------------------------------------------------------------------


def create_ifb(rtnl: Rtnl, name: str, mtu: int, alias: str) -> None:
    """Create an ifb, up, with its owner as alias from the start. Raises: KernelRefused, EEXIST if taken; NotAvailable."""
    made = step("ip", "link", "add", name, "mtu", str(mtu), "type", "ifb")
    made.line += f" && ip link set {name} up alias {quote(alias)}"
    link: Message = {"IFLA_IFNAME": name, "IFLA_MTU": mtu, "IFLA_LINKINFO": {"IFLA_INFO_KIND": "ifb"}}
    more: Message = {"IFLA_IFNAME": name, "IFLA_IFALIAS": alias[:_ALIAS_MAX], "flags": IFF_UP, "change": IFF_UP}
    with made:
        # the second message must not change a link of this name that was not made by the first
        if find_link(rtnl, name) is not None:
            raise nl.NetlinkError(EEXIST, "File exists")
        try:
            rtnl.change_all(
                (encode("ifinfmsg", link), RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL), (encode("ifinfmsg", more), RTM_NEWLINK, 0)
            )
        except nl.NetlinkError as error:
            if error.errno == EOPNOTSUPP:
                raise missing("ifb", str(error.strerror)) from error
            raise


# ---- redirection ------------------------------------------------------------------------------


def redirect(rtnl: Rtnl, link: Link, to: Link) -> None:
    """Redirect everything that the link receives to another one, instead of an earlier redirection.

    Raises: KernelRefused, NotAvailable.
    """
    with step(*rtnl.enter, "tc", "qdisc", "add", "dev", link.name, "handle", "ffff:", "ingress") as change:
        try:
            _change(rtnl, _ingress(link), RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, "ingress")
        except nl.NetlinkError as error:
            if error.errno != EEXIST:
                raise
            change.unchanged = True
    if change.unchanged:
        _delete_filter(rtnl, link)
    message = _filter(link) | {"TCA_KIND": "u32", "TCA_OPTIONS": _match_all(to)}
    line = step(*rtnl.enter, "tc", "filter", "add", "dev", link.name, "parent", "ffff:", "protocol", "all")
    line.line += f" prio {PRIORITY} u32 match u32 0 0 action mirred egress redirect dev {to.name}"
    with line:
        _change(rtnl, message, RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, "u32")


def _delete_filter(rtnl: Rtnl, link: Link) -> None:
    """Delete an earlier redirection; absence is success. Raises: KernelRefused."""
    with step(*rtnl.enter, "tc", "filter", "del", "dev", link.name, "parent", "ffff:", "prio", str(PRIORITY)) as change:
        change.unchanged = not _delete(rtnl, _filter(link), RTM_DELTFILTER)


def redirected_to(rtnl: Rtnl, link: Link) -> int | None:
    """Return the ifindex of the link that everything is redirected to, None without such a filter. Raises: KernelRefused."""
    question = {"index": link.ifindex, "parent": INGRESS}
    with nl.question(*rtnl.enter, "tc", "filter", "show", "dev", link.name, "ingress"):
        try:
            found = [decode("tcmsg", answer) for answer in rtnl.dump(encode("tcmsg", question), RTM_GETTFILTER)]
        except nl.NetlinkError as error:  # without the queueing discipline there is nothing to list
            if error.errno not in (ENOENT, EINVAL):
                raise
            return None
    for of in found:
        if (of["index"], of["info"], of.get("TCA_KIND")) == (link.ifindex, _FILTER_INFO, "u32"):
            target = _target_of(dict(attributes(of.get("TCA_OPTIONS", b""))))
            if target is not None:
                return target
    return None


def delete_redirect(rtnl: Rtnl, link: Link) -> None:
    """Delete the ``ingress`` queueing discipline with its filters; absence is success. Raises: KernelRefused."""
    with step(*rtnl.enter, "tc", "qdisc", "del", "dev", link.name, "ingress") as change:
        change.unchanged = not _delete(rtnl, _ingress(link), RTM_DELQDISC)


def _ingress(link: Link) -> Message:
    return {"index": link.ifindex, "handle": INGRESS, "parent": TC_H_INGRESS, "TCA_KIND": "ingress"}


def _filter(link: Link) -> Message:
    return {"index": link.ifindex, "parent": INGRESS, "info": _FILTER_INFO}


def _match_all(to: Link) -> bytes:
    # struct tc_u32_sel with one key, whose mask is empty
    selector = pack("=BBBxHHhhI", TC_U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0) + bytes(16)
    mirred = _MIRRED.pack(0, 0, TC_ACT_STOLEN, 0, 0, TCA_EGRESS_REDIR, to.ifindex)
    action = attribute(TCA_ACT_KIND, b"mirred\0") + attribute(TCA_ACT_OPTIONS, attribute(TCA_MIRRED_PARMS, mirred))
    return attribute(TCA_U32_SEL, selector) + attribute(TCA_U32_ACT, attribute(1, action))


def _target_of(options: dict[int, bytes]) -> int | None:
    """The ifindex in the options of a u32 filter that matches everything and redirects it."""
    selector = options.get(TCA_U32_SEL, b"")
    is_all = len(selector) >= 32 and selector[2] == 1 and not any(selector[16:20])
    for _, action in attributes(options.get(TCA_U32_ACT, b"")) if is_all else ():
        of = dict(attributes(action))
        if of.get(TCA_ACT_KIND, b"").rstrip(b"\0") == b"mirred":
            parameters = dict(attributes(of.get(TCA_ACT_OPTIONS, b""))).get(TCA_MIRRED_PARMS, b"")
            *_, what, ifindex = _MIRRED.unpack_from(parameters)
            return int(ifindex) if what == TCA_EGRESS_REDIR else None
    return None


# ---- requests ---------------------------------------------------------------------------------


def _qdiscs(rtnl: Rtnl, link: Link) -> list[Message]:
    with nl.question(*rtnl.enter, "tc", "qdisc", "show", "dev", link.name):
        answers = rtnl.dump(encode("tcmsg", {"index": link.ifindex}), RTM_GETQDISC)
    return [of for of in (decode("tcmsg", answer) for answer in answers) if of["index"] == link.ifindex]


def _change(rtnl: Rtnl, message: Message, kind: int, flags: int, feature: str) -> None:
    try:
        rtnl.change(encode("tcmsg", message), kind, flags)
    except nl.NetlinkError as error:
        if error.errno in (ENOENT, EOPNOTSUPP):  # the link was found a moment ago, so it is the kind that does not exist
            raise missing(feature, str(error.strerror)) from error
        raise


def _delete(rtnl: Rtnl, message: Message, kind: int) -> bool:
    """Return whether there was one to delete."""
    try:
        rtnl.change(encode("tcmsg", message), kind)
    except nl.NetlinkError as error:
        if error.errno not in (ENOENT, EINVAL, ENODEV):  # EINVAL: a filter without its queueing discipline, a default one
            raise
        return False
    return True
