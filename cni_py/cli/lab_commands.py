"""Commands of ``cni-py lab``: printing and exit status. The work is in lab/; options are in ``cni_py.cli.arguments``."""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from cni_py.cli.output import EXIT_FAILED, as_root, as_typed, print_error, say, show, show_folded
from cni_py.errors import InvalidConfig
from cni_py.journal import quote
from cni_py.lab import faults
from cni_py.lab.build import listed
from cni_py.lab.lab import DIRECTORY, Lab
from cni_py.lab.plan import OUTSIDE, OUTSIDE6, WITHOUT_ROUTES, as_json, lan_networks
from cni_py.lab.programs import LabFailed, WrongUsage
from cni_py.lab.state import take_down

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from cni_py.lab.plan import Settings
    from cni_py.lab.site import Site

LABEL_WIDTH = 14
"""Columns of the word in front of what `cni-py lab up` reports."""
LOCK_TRIES = 100
"""Attempts to create the lab's directory while other commands remove it."""


def run(options: argparse.Namespace) -> int:
    """Run the command. Raises: LabFailed."""
    if os.geteuid() != 0:
        raise LabFailed(
            "cni-py lab must be run as root: it creates network, mount and PID namespaces",
            hint=as_root(options.typed),
        )
    try:
        return _COMMANDS[options.lab_command](options)
    except LabFailed as error:
        error.hint = _in_directory(error.hint, options.directory)
        if not isinstance(error, WrongUsage):
            raise
        print_error(error)
        return error.status


def _in_directory(text: str, directory: str) -> str:
    """Return a hint whose commands are about the lab in this directory."""
    return text if directory == DIRECTORY else re.sub(r"(cni-py lab \w+)", rf"\1 --directory {quote(directory)}", text)


def up(options: argparse.Namespace) -> int:
    began = time.monotonic()

    def progress(line: str) -> None:
        show_folded(f"  {line}", LABEL_WIDTH)
        _flush()

    lab = Lab(
        options.nodes,
        options.backend,
        options.ipv6 or options.no_ipv4,
        options.datastore,
        options.segments,
        ipv4=not options.no_ipv4,
        pods=options.pods,
        backend_options=dict(options.backend_option),
        config=_read_config(options.net_conf) if options.net_conf else None,
        flanneld=options.flanneld,
        flanneld_options=options.flanneld_option,
        numbered=options.numbered,
        directory=options.directory,
        progress=progress,
    )
    for line in overlaps(lab.settings):
        say(line)
    with alone(options.directory):
        lab.up()
        lab.stay()
    took = time.monotonic() - began
    if lab.settings.backend in WITHOUT_ROUTES:
        text = f"up in {took:.1f} s; {lab.settings.backend} creates no routes to other nodes' pods; try: cni-py lab status"
        show_folded(as_typed(text), 4)
        return 0
    matrix = lab.wait_connected(outside=True)
    if matrix.pairs:
        progress(f"ping          {matrix.summary()}")
    connected = f", connected after {time.monotonic() - began:.1f} s" if matrix.is_complete else ""
    show_folded(f"up in {took:.1f} s{connected}; try: {as_typed(_next_steps(lab))}", 4)
    if matrix.is_complete:
        return 0
    missing = listed([f"{pair.source} to {pair.target} ({pair.address}): {pair.why}" for pair in matrix.failed])
    say(f"not all pods reach one another: {missing}. The lab is kept; see cni-py lab ping, and cni-py lab log node1")
    return EXIT_FAILED


def overlaps(settings: Settings) -> list[str]:
    """Return what flanneld will report of a network that overlaps the lab's own."""
    from cni_py.flanneld.host_networks import HostNetwork, warnings  # half of the time that lab exec would take to start
    from cni_py.flanneld.network import NetworkConfig

    try:
        networks = NetworkConfig.parse(as_json(settings.config)).networks
    except InvalidConfig:  # flanneld itself reports why
        return []
    return warnings(networks, [HostNetwork(network, "eth0") for network in lan_networks(settings)])


def _next_steps(lab: Lab) -> str:
    pods = list(lab.pods.values())
    tries = ["cni-py lab ping", "cni-py lab status"]
    if len(pods) > 1:
        tries.append(f"cni-py lab exec {pods[0].name} -- ping {pods[1].addresses[0]}")
        tries.append(f"cni-py lab break route {pods[0].node}")
    return ", ".join(tries)


def _read_config(path: str) -> dict[str, Any]:
    """Read a network configuration. Raises: LabFailed."""
    import sys

    try:
        if path == "-":
            config = json.load(sys.stdin)
        else:
            with open(path) as file:
                config = json.load(file)
    except ValueError as error:
        raise LabFailed(f'"{path}" is not JSON', str(error)) from error
    if not isinstance(config, dict) or not isinstance(config.get("Backend", {}), dict):
        raise LabFailed(f'"{path}" is not a network configuration', hint='for example {"Network": "10.244.0.0/16"}')
    return config


def down(options: argparse.Namespace) -> int:
    with alone(options.directory):
        there = take_down(options.directory)
    show("lab removed" if there else "no lab is running")
    return 0


def execute(options: argparse.Namespace) -> int:
    """Replace this process with the command: its exit status is ours."""
    lab = Lab.open(options.directory)
    argv = options.argv[1:] if options.argv[:1] == ["--"] else options.argv
    command = lab.command(options.where, *(argv or [os.environ.get("SHELL") or "sh"]))
    _flush()
    os.execvpe(command[0], command, os.environ | lab.environment)  # noqa: S606 — a program, not a shell's text


def ping(options: argparse.Namespace) -> int:
    lab = Lab.open(options.directory)
    matrix = lab.ping(outside=options.outside, seconds=options.seconds)
    if options.json:
        rows = [{name: getattr(pair, name) for name in pair.__slots__} for pair in matrix.pairs]
        show(json.dumps(rows, indent=4))
    else:
        for line in [*matrix.lines(), matrix.summary()]:
            show(line)
    return 0 if matrix.is_complete else EXIT_FAILED


def status(options: argparse.Namespace) -> int:
    """Print the state; exit status 1 if it differs from what ``up`` created."""
    lab = Lab.open(options.directory)
    report = describe(lab) | {"unreachable": unreachable(lab)}
    report["ok"] = report["ok"] and not report["unreachable"]
    if options.json:
        show(json.dumps(report, indent=4))
    else:
        for line in lines(report):
            show(line)
    return 0 if report["ok"] else EXIT_FAILED


def unreachable(lab: Site) -> list[str]:
    """Return the pairs of pods without a connection; none for a back end without routes, or beside a node that has ended."""
    if lab.settings.backend in WITHOUT_ROUTES or not all(lab.machine(node.name).is_alive for node in lab.state.nodes):
        return []
    return [f"{pair.source} to {pair.target} ({pair.address})" for pair in lab.ping(seconds=0.5).failed]


def describe(lab: Site) -> dict[str, Any]:
    """Describe the state, as values for JSON."""
    state, settings = lab.state, lab.settings
    nodes = []
    for node in state.nodes:
        alive = lab.machine(node.name).is_alive
        flanneld = lab.flanneld(node.name)
        nodes.append(
            {
                "name": node.name,
                "segment": node.segment,
                "addresses": [node.address] * settings.ipv4 + [node.address6] * settings.ipv6,
                "subnets": lab.subnets(node.name),
                "alive": alive,
                "flanneld": flanneld.pid if alive and flanneld.is_alive else None,
                "pods": {pod.name: list(pod.addresses) for pod in lab.pods.values() if pod.node == node.name},
                "log": flanneld.log_path,
            }
        )
    broken = faults.still_broken(lab)
    ok = state.complete and not broken and all(node["alive"] and node["flanneld"] for node in nodes)
    etcd = lab.service("etcd").is_alive if settings.datastore == "etcd" else None
    return {
        "ok": ok and etcd is not False,
        "since": state.since,
        "directory": lab.directory,
        "config": settings.config,
        "datastore": settings.datastore,
        "etcd": etcd,
        "outside": [OUTSIDE] * settings.ipv4 + [OUTSIDE6] * settings.ipv6,
        "nodes": nodes,
        "broken": broken,
    }


def lines(report: dict[str, Any]) -> list[str]:
    """Format the report for the terminal."""
    minutes = int((time.time() - report["since"]) / 60)
    backend = report["config"].get("Backend", {}).get("Type", "udp")
    datastore = report["datastore"] + {None: "", True: " (up)", False: " (DOWN)"}[report["etcd"]]
    rows = [["NODE", "ADDRESS", "SEGMENT", "SUBNET", "FLANNELD", "PODS"]]
    for node in report["nodes"]:
        flanneld = f"running (pid {node['flanneld']})" if node["flanneld"] else "DOWN"
        pods = ", ".join(f"{name} {' '.join(addresses)}" for name, addresses in node["pods"].items())
        addresses = " ".join(node["addresses"])
        rows.append(
            [
                node["name"],
                addresses,
                str(node["segment"]),
                node["subnets"] or "-",
                flanneld if node["alive"] else "EXITED",
                pods,
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    outside = " ".join(report["outside"])
    head = f"{backend}, datastore {datastore}, up for {minutes} min, outside {outside}, in {report['directory']}"
    unreached = [f"not reached: {pair}    cni-py lab ping" for pair in report.get("unreachable", ())[:5]]
    return [head, *table, *(f"broken: {which}    cni-py lab heal {which}" for which in report["broken"]), *unreached]


def log(options: argparse.Namespace) -> int:
    lab = Lab.open(options.directory)
    if options.where not in lab.state.pods:
        lab.machine(options.where)
    try:
        show(lab.log(options.where).rstrip("\n"))
    except FileNotFoundError:
        raise LabFailed(f"{options.where} has no log", hint="nodes and etcd have one") from None
    return 0


def break_(options: argparse.Namespace) -> int:
    with alone(options.directory):
        lab = Lab.open(options.directory)
        fault = faults.break_(lab, options.what, options.node)
    if options.what in ("route", "arp", "fdb"):
        show(f"{fault.what}: {fault.removed} deleted")
        if fault.healed_seconds is not None:
            show(f"flanneld restored them after {fault.healed_seconds:.2f} s")
            return 0
        show("flanneld did not restore them")
    else:
        show(f"{fault.what}: {'cable unplugged' if options.what == 'link' else 'killed'}")
    show(as_typed(_in_directory(f"to heal it: cni-py lab heal {fault.what}", options.directory)))
    return 0


def heal(options: argparse.Namespace) -> int:
    """Repair one fault, or all of them if none is named."""
    with alone(options.directory):
        lab = Lab.open(options.directory)
        wanted = [f"{options.what} {options.node}".strip()] if options.what else sorted(lab.state.broken)
        for which in wanted:
            what, _, node = which.partition(" ")
            was_broken = which in lab.state.broken
            faults.heal(lab, what, node)
            show(f"{which}: {'healed' if was_broken else 'was not broken'}")
    return 0


@contextmanager
def alone(directory: str) -> Iterator[None]:
    """Serialize commands that change the lab. Raises: LabFailed."""
    fd = _lock(directory)
    try:
        yield
    finally:
        with suppress(OSError):  # not empty, or removed with the lab
            os.rmdir(directory)
        with suppress(OSError):  # plugins, agent or flanneld use it
            if directory == DIRECTORY:
                os.rmdir(os.path.dirname(directory))
        os.close(fd)


def _lock(directory: str) -> int:
    """Create the lab's directory if necessary and lock it. Returns: descriptor of a directory that still exists."""
    for _ in range(LOCK_TRIES):
        try:
            os.makedirs(directory, 0o700, exist_ok=True)
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # removed in between; or it can never be created
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(directory)):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise LabFailed("another cni-py lab command is running", hint="wait for it, or interrupt it") from None
        except FileNotFoundError:
            pass
        os.close(fd)
    raise LabFailed(
        f'could not create the directory "{directory}"', hint=f"check for a dangling symbolic link: namei {directory}"
    )


def _flush() -> None:
    import sys

    sys.stdout.flush()


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "up": up,
    "exec": execute,
    "ping": ping,
    "status": status,
    "log": log,
    "break": break_,
    "heal": heal,
    "down": down,
}
