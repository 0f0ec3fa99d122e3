"""``macspoofchk`` as a ruleset: pure, nothing here touches the kernel."""

from __future__ import annotations

from cni_py.errors import InvalidConfig

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni_py.packetfilter.ownership import Owner

TABLE = "bridge cni_py"
BASE = (
    f'add table {TABLE} {{ comment "cni-py: ports that may send from one MAC address only"; }}',
    f"add set {TABLE} checked {{ type ifname; }}",
    f"add set {TABLE} allowed {{ type ifname . ether_addr; }}",
    f"add chain {TABLE} prerouting {{ type filter hook prerouting priority -300; policy accept; }}",
)
CHAIN = f"{TABLE} prerouting"
RULES = ('iifname @checked iifname . ether saddr != @allowed drop comment "a checked port with another address than its own"',)


def quoted_port(port: str) -> str:
    """The interface name in nft's syntax. Raises: InvalidConfig if that cannot express it."""
    if not port or any(c in '"\\*' or not c.isprintable() for c in port):
        raise InvalidConfig(
            f'macspoofchk cannot check the port "{port}"', "its name holds a character that has a meaning in nft's syntax"
        )
    return f'"{port}"'


def port_key(port: str, mac: str = "") -> bytes:
    """The key of a port in ``checked``, and with its address in ``allowed``: padded to 16 and 8 bytes."""
    name = port.encode(errors="surrogateescape").ljust(16, b"\0")
    return name + (bytes.fromhex(mac.replace(":", "")) + b"\0\0" if mac else b"")


def port_text(key: bytes) -> str:
    """Return the key in nft's syntax."""
    name = key[:16].rstrip(b"\0").decode(errors="surrogateescape")
    return f'"{name}"' + (f" . {key[16:22].hex(':')}" if len(key) > 16 else "")


def element_commands(owner: Owner, port: str, mac: str) -> list[str]:
    """Commands that let only frames of ``mac`` in through ``port``. Raises: InvalidConfig."""
    name, comment = quoted_port(port), f'comment "{owner.comment()}"'
    if len(mac) != 17 or not set(mac.lower()) <= set("0123456789abcdef:"):
        raise InvalidConfig(f'"{mac}" is not a MAC address')
    return [
        f"add element {TABLE} allowed {{ {name} . {mac.lower()} {comment} }}",
        f"add element {TABLE} checked {{ {name} {comment} }}",
    ]
