"""Owners of rules and elements, and the comments that name them: pure, nothing here touches the kernel.

A DEL compares the comment before it deletes: the address or port may belong to another attachment now.
masquerade_ruleset.py, macspoof_ruleset.py and hostports/rules.py build on this.
"""

from __future__ import annotations

import sys

from cni_py.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

MAX_COMMENT = 128  # nft's limit, in bytes
MAX_CHAIN_NAME = 120
TABLE = "inet cni_py"
"""Holds masquerade and host ports, of all pods."""
TABLE_BASE = f'add table {TABLE} {{ comment "cni-py: masquerade and host ports of pods"; }}'
BEYOND, IF, MARK = "beyond-", "if-", "mark"
"""Prefixes of the names of chains that attachments share: of a subnet, of conditions, of a subnet and a mark."""
MASQUERADE_MARK = f"masquerade-{MARK}"
REPAIR = "cni-py repair"
"""Hint of CHECK: it adds the missing rules of every attachment that has a record."""
_PLAIN = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"


def digest(text: str) -> str:
    """SHA-512 in hex, the hash of the Go plugins' names."""
    # not hashlib: it loads OpenSSL, which takes 3 ms; not by an ImportError: each one searches all directories again
    if sys.version_info >= (3, 12):
        from _sha2 import sha512
    else:
        from _sha512 import sha512  # type: ignore[import-not-found]
    return str(sha512(text.encode(errors="surrogateescape")).hexdigest())


class Owner(Value):
    """The attachment that a rule or an element belongs to."""

    container_id: str
    ifname: str
    network: str

    def comment(self) -> str:
        """The comment of this attachment's elements: id, interface, hash of the network. See :func:`parse_owner`."""
        return f"{short_id(self.container_id)} {percent_encode(self.ifname)} {network_hash(self.network)}"

    def go_chain(self) -> str:
        """Name of the iptables chain. Go-compatible: pkg/utils/utils.go, FormatChainName (it ignores the interface)."""
        return f"CNI-{digest(self.network + self.container_id)[:24]}"

    def go_comment(self) -> str:
        """Comment of the iptables rules. Go-compatible: pkg/utils/utils.go, FormatComment."""
        return f'name: "{self.network}" id: "{self.container_id}"'

    def go_instance(self) -> str:
        """First part of the Go plugins' nftables comments. Go-compatible: pkg/ip/ipmasq_nftables_linux.go."""
        return f"{digest(self.network)[:16]}-{digest(f'{self.ifname}:{self.container_id}')[:16]}"

    def __str__(self) -> str:
        return f"{self.container_id} {self.ifname} {self.network}"


def parse_owner(comment: str) -> tuple[str, str, str] | None:
    """Parse a comment. Returns: container id (as :func:`short_id`), interface name, network hash; None: not our comment."""
    parts = comment.split(" ")
    if len(parts) != 3:
        return None
    return parts[0], percent_decode(parts[1]), parts[2]


def network_hash(network: str) -> str:
    return digest(network)[:8]


def short_id(container_id: str) -> str:
    """The id as comments have it: one of more than 72 characters is cut, with ``~`` and a hash of all of it."""
    # nft's 128 = 72 for the id + 45 for an interface name of 15 encoded bytes + 8 for the network's hash + two spaces + 1
    encoded = percent_encode(container_id)
    return encoded if len(encoded) <= 72 else f"{encoded[:39]}~{digest(container_id)[:32]}"


def percent_encode(text: str) -> str:
    if not text.encode(errors="surrogateescape").translate(None, _PLAIN):
        return text
    return "".join([chr(b) if b in _PLAIN else f"%{b:02X}" for b in text.encode(errors="surrogateescape")])


def percent_decode(text: str) -> str:
    """The reverse; a text that :func:`percent_encode` cannot have returned is left unchanged."""
    head, *rest = text.split("%")
    try:
        raw = head.encode() + b"".join([bytes([int(part[:2], 16)]) + part[2:].encode() for part in rest])
    except ValueError:
        return text
    decoded = raw.decode(errors="surrogateescape")
    return decoded if percent_encode(decoded) == text else text


def stale_test(
    network: str, valid: Collection[tuple[str, str]] | None, is_stale: Callable[[str, str], bool] | None
) -> Callable[[str], bool]:
    """A test whether a comment names a stale attachment of this network.

    Args:
        valid: (container id, interface name) of the attachments to keep; None: ``is_stale`` decides.
        is_stale: called with a container id and an interface name, only if the comment holds the whole id.
    """
    hashed = network_hash(network)
    live = {(short_id(container_id), ifname) for container_id, ifname in valid or ()}

    def names_stale(comment: str) -> bool:
        container_id, ifname, of_network = parse_owner(comment) or ("", "", "")
        if of_network != hashed:
            return False
        if valid is not None:
            return (container_id, ifname) not in live
        return is_stale is not None and "~" not in container_id and is_stale(container_id, ifname)

    return names_stale


# ---- rules --------------------------------------------------------------------------------------


def rule_comments(lines: Iterable[str]) -> list[str]:
    """The comments of rules: each of our rules has a unique one, by which ADD recognizes it."""
    return [line.partition(' comment "')[2].rstrip('"') for line in lines]


def refill(chain: str, rules: Iterable[str]) -> list[str]:
    """Commands that leave exactly these rules in the chain, whatever was in it."""
    return [f"flush chain {chain}", *(f"add rule {chain} {rule}" for rule in rules)]
