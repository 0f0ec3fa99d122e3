"""A firewalld for tests: a program on a real dbus-daemon that has its name and keeps sources of zones in a file.

The daemon between the two closes the connection of a program that sends anything but D-Bus, so what our client sends is checked.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cni_py.dbus import (
    DESTINATION,
    ERROR,
    ERROR_NAME,
    MEMBER,
    REPLY_SERIAL,
    RETURN,
    Bus,
    message,
)
from cni_py.packetfilter.firewalld import NAME
from support.namespaces import PATH, Host

ROOT = Path(__file__).resolve().parents[2]
SOURCES = "/run/firewalld.json"
CONFIG = """<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy></busconfig>"""
PROGRAM = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]; from support.firewalld import serve; serve()"


@contextmanager
def running(host: Host, *, with_firewalld: bool = True) -> Iterator[None]:
    """A system bus in the host and, on it, firewalld."""
    host.write("/run/bus.conf", CONFIG)
    host.run("mkdir -p /run/dbus")
    with program(host, "dbus-daemon", "--config-file=/run/bus.conf", "--print-address", "--nofork"):
        if with_firewalld:
            with program(host, sys.executable, "-I", "-c", PROGRAM):
                yield
        else:
            yield
    host.run("rm -rf /run/dbus")


@contextmanager
def program(host: Host, *argv: str) -> Iterator[None]:
    """Run a program of the host, which prints a line when it is ready, until the end of the block."""
    until_end = '"$@" & read line; kill $!; wait'  # of standard input: nsenter does not pass signals on
    process = subprocess.Popen(
        host.command("sh", "-c", until_end, "sh", *argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PATH": PATH}
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline()
        yield
    finally:
        process.communicate(timeout=30)


def sources(host: Host) -> dict[str, str]:
    """Source to zone."""
    path = host.path(SOURCES)
    found: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    return found


def serve() -> None:
    """Own firewalld's name and handle addSource, removeSource, querySource. ``broken`` is a zone that does not exist."""
    with Bus() as bus:
        bus.call("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "RequestName", NAME, 4)
        bus._socket.settimeout(None)
        print("ready", flush=True)
        while True:
            kind, serial, fields, body = bus.receive()
            if kind != 1 or fields.get(MEMBER) not in ("addSource", "removeSource", "querySource"):
                continue
            zone, source = texts(body)
            value, error = handle(str(fields[MEMBER]), zone, source)
            back = {REPLY_SERIAL: serial, DESTINATION: str(fields[7])}
            bus._serial += 1
            if error:
                reply = message(ERROR, bus._serial, back | {ERROR_NAME: f"{NAME}.Exception"}, (f"{error}: {source}",))
            else:
                reply = message(RETURN, bus._serial, back, (value,))
            bus._socket.sendall(reply)


def texts(body: bytes) -> list[str]:
    found, at = [], 0
    while at < len(body):
        at = at + 3 & ~3
        size = int.from_bytes(body[at : at + 4], "little")
        found.append(body[at + 4 : at + 4 + size].decode())
        at += size + 5
    return found


def handle(method: str, zone: str, source: str) -> tuple[str | bool, str]:
    """Returns: the answer, and the error."""
    path = Path(SOURCES)
    known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    if zone == "broken":
        return "", "INVALID_ZONE"
    if method == "querySource":
        return known.get(source) == zone, ""
    if method == "addSource":
        if source in known:
            return "", "ZONE_ALREADY_SET"
        known[source] = zone
    elif known.pop(source, None) is None:
        return "", "UNKNOWN_SOURCE"
    path.write_text(json.dumps(known))
    return zone, ""
