"""Method calls on D-Bus's system bus: as much of its protocol as firewalld needs: texts, numbers and truths.

    with Bus(address) as bus:
        bus.call(name, path, interface, method, "trusted", "10.1.0.2/32") -> str | bool | None

Source: D-Bus specification, "Message Protocol", "Authentication Protocol".
"""

from __future__ import annotations

import _socket
import posix
from struct import error as struct_error
from struct import pack, unpack_from

from cni_py.errors import NotAvailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

ADDRESS = "unix:path=/run/dbus/system_bus_socket"
TIMEOUT_SECONDS = 25.0
MAX_BYTES = 1 << 20
CALL, RETURN, ERROR = 1, 2, 3
PATH, INTERFACE, MEMBER, ERROR_NAME, REPLY_SERIAL, DESTINATION, SIGNATURE = 1, 2, 3, 4, 5, 6, 8
_FIELD_TYPES = {PATH: b"o", REPLY_SERIAL: b"u"}
"""Types of header fields; the others are texts, but for the signature."""
_BUS = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")


class Failed(NotAvailable):
    """Error that the called program returned; ``details``: its name and text."""


class Bus:
    """A connection to the bus. Raises: NotAvailable if there is none."""

    def __init__(self, address: str = ADDRESS) -> None:
        self._path = address.partition("unix:path=")[2].partition(",")[0].partition(";")[0]
        self._serial, self._received = 0, b""

    def __enter__(self) -> Bus:
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        self._socket.settimeout(TIMEOUT_SECONDS)
        try:
            self._socket.connect(self._path)
            self._authenticate()
        except OSError as error:
            self._socket.close()
            raise _no_bus(self._path, error) from error
        self.call(*_BUS, "Hello")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()

    def _authenticate(self) -> None:
        self._socket.sendall(b"\0AUTH EXTERNAL " + str(posix.geteuid()).encode().hex().encode() + b"\r\n")
        answer = b""
        while not answer.endswith(b"\r\n"):
            block = self._socket.recv(512)
            if not block or len(answer) > 4096:
                raise ConnectionError("the bus closed the connection")
            answer += block
        if not answer.startswith(b"OK"):
            raise ConnectionError(f"the bus refused: {answer[:100]!r}")
        self._socket.sendall(b"BEGIN\r\n")

    def has_owner(self, name: str) -> bool:
        """Return whether a program has this name on the bus."""
        return bool(self.call(*_BUS, "NameHasOwner", name))

    def call(self, name: str, path: str, interface: str, method: str, *arguments: str | int) -> str | bool | None:
        """Call a method. Returns: the first value of its answer. Raises: Failed, NotAvailable."""
        self._serial += 1
        fields = {PATH: path, INTERFACE: interface, MEMBER: method, DESTINATION: name}
        try:
            self._socket.sendall(message(CALL, self._serial, fields, arguments))
            while True:
                kind, _, found, body = self.receive()
                if found.get(REPLY_SERIAL) == self._serial and kind in (RETURN, ERROR):
                    break
        except (OSError, struct_error, IndexError) as error:
            raise _no_bus(self._path, error) from error
        value = first_value(str(found.get(SIGNATURE, "")), body)
        if kind == ERROR:
            raise Failed(f'"{interface}.{method}" failed', f"{found.get(ERROR_NAME)}: {value or 'no reason given'}")
        return value

    def receive(self) -> tuple[int, int, dict[int, str | int], bytes]:
        """Wait for a message. Returns: kind, serial, header fields, body. Raises: OSError."""
        length, fields_length = unpack_from("<I", self._read(16), 4)[0], unpack_from("<I", self._received, 12)[0]
        start = 16 + fields_length + 7 & ~7
        if length + start > MAX_BYTES or self._received[:1] != b"l":
            raise ConnectionError("the bus sent a message of another form")
        whole, self._received = self._read(start + length)[: start + length], self._received[start + length :]
        return whole[1], unpack_from("<I", whole, 8)[0], header_fields(whole[: 16 + fields_length]), whole[start:]

    def _read(self, size: int) -> bytes:
        """Receive until this many bytes are there; they stay."""
        while len(self._received) < size:
            block = self._socket.recv(1 << 16)
            if not block:
                raise ConnectionError("the bus closed the connection")
            self._received += block
        return self._received


def _no_bus(path: str, error: Exception) -> NotAvailable:
    words = getattr(error, "strerror", None) or error
    return NotAvailable(f"dial unix {path}: {words}", "no D-Bus system bus", 'is "dbus" running?')


# ---- messages: pure ---------------------------------------------------------------------------


def message(kind: int, serial: int, fields: Mapping[int, str | int], arguments: tuple[str | int, ...] = ()) -> bytes:
    """Encode a message whose arguments are texts, numbers and truths."""
    body = b""
    for value in arguments:
        body += bytes(-len(body) % 4)
        body += pack("<I", value) if isinstance(value, int) else _text(value)
    signature = "".join([{bool: "b", int: "u"}.get(type(value), "s") for value in arguments])
    array = b""
    for code, field in fields.items():
        array += bytes(-len(array) % 8) + bytes([code, 1]) + _FIELD_TYPES.get(code, b"s") + b"\0"
        array += pack("<I", field) if isinstance(field, int) else _text(field)
    if signature:
        array += bytes(-len(array) % 8) + bytes([SIGNATURE, 1, *b"g\0", len(signature), *signature.encode(), 0])
    head = b"l" + bytes([kind, 0, 1]) + pack("<III", len(body), serial, len(array)) + array
    return head + bytes(-len(head) % 8) + body


def _text(value: str) -> bytes:
    encoded = value.encode(errors="replace")
    return pack("<I", len(encoded)) + encoded + b"\0"


def header_fields(head: bytes) -> dict[int, str | int]:
    """Decode the array of header fields, which begins at byte 16; those of other types are left out."""
    found: dict[int, str | int] = {}
    at = 16
    while at + 4 < len(head):
        code, kind = head[at], head[at + 2 : at + 3]
        at += 4
        if kind == b"g":
            found[code], at = head[at + 1 : at + 1 + head[at]].decode(errors="replace"), at + head[at] + 2
        elif kind in (b"s", b"o"):
            size = unpack_from("<I", head, at)[0]
            found[code], at = head[at + 4 : at + 4 + size].decode(errors="replace"), at + size + 5
        else:
            found[code], at = unpack_from("<I", head, at)[0], at + 4
        at = at + 7 & ~7
    return found


def first_value(signature: str, body: bytes) -> str | bool | None:
    """Decode the first value of a body, if it is a text or a truth."""
    if signature[:1] == "b" and len(body) >= 4:
        return bool(unpack_from("<I", body)[0])
    if signature[:1] == "s" and len(body) >= 4:
        return body[4 : 4 + unpack_from("<I", body)[0]].decode(errors="replace")
    return None
