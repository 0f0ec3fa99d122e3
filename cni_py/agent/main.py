"""The command ``cni-agent``: options, listening socket, signals, metrics server, service manager."""

from __future__ import annotations

import argparse
import os
import resource
import signal
from ipaddress import ip_address

from cni_py import __version__, protocol
from cni_py.agent import listener as listening
from cni_py.agent.listener import Listener
from cni_py.agent.log import log
from cni_py.agent.server import Agent
from cni_py.agent.warm_up import warm_up
from cni_py.node import systemd
from cni_py.node.health import Health
from cni_py.node.http_server import listen_tcp, listen_unix


def main() -> int:
    """See ``cni-agent --help`` and docs/agent.md. Returns: the exit status."""
    options = parse_options()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    try:
        inherited = listening.inherited()
        listener = Listener(inherited, "") if inherited else Listener(listening.listen(options.socket), options.socket)
    except OSError as error:
        log(f"cni-agent: could not listen on {options.socket}: {error.strerror}; it requires root and a writable directory")
        return 1
    warm_up()
    agent = Agent(listener, options.sweep_seconds, options.check_seconds, repairs=not options.no_repair)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    signal.signal(signal.SIGHUP, lambda *_: log("nothing to reload: configurations come with each call"))
    health = Health(program="cni-agent", registry=agent.metrics.registry)
    if options.metrics:
        start_metrics(health, options.metrics)
    print(f"ready {listener.path or 'on the inherited socket'}, pid {os.getpid()}", flush=True)
    health.set_ready()
    systemd.notify("READY=1")
    agent.serve(options.idle_exit)
    health.set_unready("stopping")
    systemd.notify("STOPPING=1")
    agent.leave()
    health.stop()
    return 0


def start_metrics(health: Health, address: str) -> None:
    """Serve metrics; a failure is logged, since pods matter more."""
    try:
        if address.startswith("unix:"):
            health.start(listen_unix(address.removeprefix("unix:")))
        else:
            ip, _, port = address.rpartition(":")
            health.start(listen_tcp(ip, int(port), share_port=True))  # while an agent is replaced, both listen on it
    except OSError as error:
        log(f"no metrics on {address}: {error.strerror}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cni-agent",
        description="Handles the calls of cni-py's plugins in a process that has everything loaded."
        " Optional: without it the plugins work alone.",
        epilog="Prints one line, 'ready …', when it accepts calls. On SIGTERM it finishes running calls, rejects waiting ones,"
        " and exits.",
    )
    parser.add_argument("--socket", default=protocol.SOCKET_PATH, metavar="PATH", help="where to listen (%(default)s)")
    parser.add_argument(
        "--idle-exit", type=float, default=0.0, metavar="SECONDS", help="exit after this time without a call (never)"
    )
    parser.add_argument(
        "--sweep-seconds",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="how often to remove leaked resources; 0: never (%(default)s)",
    )
    parser.add_argument(
        "--check-seconds",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="how often to CHECK the attachments that it created; 0: never (%(default)s)",
    )
    parser.add_argument(
        "--no-repair",
        action="store_true",
        help="do not restore rules of live pods that another program has deleted (nft flush ruleset)",
    )
    parser.add_argument(
        "--metrics",
        type=parse_metrics_address,
        metavar="ADDRESS",
        help="Prometheus text on unix:/PATH or on a loopback 127.0.0.1:PORT (off)",
    )
    parser.add_argument("--version", action="version", version=f"cni-agent {__version__}")
    return parser.parse_args()


def parse_metrics_address(text: str) -> str:
    """``unix:/PATH`` or ``127.0.0.1:PORT``, unchanged. Raises: ValueError."""
    if not text.startswith("unix:/"):
        ip, _, port = text.rpartition(":")
        if not ip_address(ip).is_loopback or ip_address(ip).version == 6 or not 0 < int(port) < 65536:
            raise ValueError(f'"{text}" is neither unix:/PATH nor a port of 127.0.0.1: metrics are local to this node')
    return text
