"""Leases on disk, so that a daemon that was restarted goes on with those of its predecessor.

Owns: ``/run/cni-py/dhcp``, a file for each lease. It holds of one boot: its times are those of ``time.monotonic``.

Everything works without it, but a lease that no daemon renews ends, and the server gives the address to another client.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Address

from cni_py import config, files
from cni_py.dhcp.lease import Client, Lease
from cni_py.dhcp.packet import decode, is_of_a_host
from cni_py.errors import CniError
from cni_py.jsontext import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

DIRECTORY = "/run/cni-py/dhcp"
MAX_TIME = 1e11
"""Seconds since the boot, of three thousand years."""
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


@dataclass(frozen=True, slots=True)
class Saved:
    """A lease with its client, and device and inode of its sandbox."""

    client: Client
    lease: Lease
    sandbox: tuple[int, int]


class Store:
    """The leases of one daemon, which is known by its socket. A failure is reported to ``say``: the daemon goes on without."""

    def __init__(self, socket_path: str, say: Callable[[str], object], prefix: str = "") -> None:
        self._socket, self._say, self._directory = socket_path, say, prefix + DIRECTORY

    def save(self, saved: Saved) -> None:
        client, lease = saved.client, saved.lease
        content = {
            "boot": _boot_id(),
            "socket": self._socket,
            "identity": client.identity,
            "netns": client.netns,
            "ifname": client.ifname,
            "requested": list(client.requested),
            "provided": [[code, value.hex()] for code, value in client.provided],
            "sandbox": list(saved.sandbox),
            "ack": lease.ack.encode().hex(),
            "server": str(lease.server),
            "serverMAC": lease.server_mac.hex(),
            "times": [lease.renewal, lease.rebinding, lease.expiry],
        }
        try:
            files.own_directory(self._directory)
            files.write(self._path(client.identity), encode(content))
        except CniError as error:
            self._say(f"{client.identity}: not saved for the next daemon: {error}")

    def remove(self, identity: str) -> None:
        try:
            files.remove(self._path(identity))
        except CniError as error:
            self._say(f"{identity}: {error}")

    def load(self) -> Iterator[Saved]:
        """Yield the leases of this daemon's predecessor; delete what is of another boot, or damaged."""
        try:
            files.check_own_directory(self._directory)
            names = files.list_directory(self._directory)
        except CniError as error:
            self._say(f"leases of the former daemon are not used: {error}")
            return
        for name in names:
            path = f"{self._directory}/{name}"
            try:
                content = config.decode(files.read(path), path)
                if content["boot"] == _boot_id():
                    if content["socket"] == self._socket:
                        yield parse(content)
                    continue
            except (CniError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                self._say(f"{path}: {type(error).__name__}: {error}")
            files.remove(path)

    def _path(self, identity: str) -> str:
        return f"{self._directory}/{sha256(identity.encode(errors='surrogateescape')).hexdigest()[:32]}"


def parse(content: dict[str, Any]) -> Saved:
    """Pure. Raises: ValueError, KeyError, TypeError, AttributeError."""
    provided = tuple((int(code), bytes.fromhex(value)) for code, value in content["provided"])
    requested = tuple(map(int, content["requested"]))
    client = Client(str(content["identity"]), str(content["netns"]), str(content["ifname"]), requested, provided)
    renewal, rebinding, expiry = map(float, content["times"])
    ack, server_mac = decode(bytes.fromhex(content["ack"])), bytes.fromhex(content["serverMAC"])
    device, inode = map(int, content["sandbox"])
    if not 0 <= renewal <= rebinding <= expiry < MAX_TIME or not is_of_a_host(ack.yours):
        raise ValueError("the lease is damaged")
    return Saved(client, Lease(ack, IPv4Address(content["server"]), server_mac, renewal, rebinding, expiry), (device, inode))


def _boot_id() -> str:
    return files.read(_BOOT_ID).decode().strip()
