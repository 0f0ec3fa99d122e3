"""Options of ``cni-agent``. Completion, man page and reference are made of them too, so nothing heavy is imported here."""

from __future__ import annotations

import argparse
from ipaddress import ip_address

from cni_py import __version__, protocol


def build() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="cni-agent",
        description="Handles the calls of cni-py's plugins in a process that has everything loaded."
        " Optional: without it the plugins work alone.",
        epilog="Prints one line, 'ready …', when it accepts calls. On SIGTERM it finishes running calls, rejects waiting ones,"
        " and exits.",
    )
    parser.add_argument(
        "--socket",
        default=protocol.SOCKET_PATH,
        metavar="PATH",
        help="where to listen; ignored when systemd passes a socket (LISTEN_FDS) (%(default)s)",
    )
    parser.add_argument(
        "--idle-exit",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="exit after this time without a call; the socket unit starts it again for the next one (never)",
    )
    parser.add_argument(
        "--sweep-seconds",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="how often to remove leaked resources, as cni-py sweep does; also after a namespace was deleted; 0: never"
        " (%(default)g)",
    )
    parser.add_argument(
        "--check-seconds",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="how often to CHECK the attachments that it created; a difference seen twice within a second is logged and"
        " counted; 0: never (%(default)g)",
    )
    parser.add_argument(
        "--no-repair",
        action="store_true",
        help="do not restore rules of live pods that another program deletes (nft flush ruleset). Without it they are restored"
        " within seconds, as by cni-py repair; a program that deletes them 8 times in two minutes wins: then none are restored"
        " for 10 minutes, and the log says so",
    )
    parser.add_argument(
        "--metrics",
        type=parse_metrics_address,
        metavar="ADDRESS",
        help="serve Prometheus text at http://ADDRESS/metrics: unix:/PATH, or a port of loopback, 127.0.0.1:PORT (off)",
    )
    parser.add_argument("--version", action="version", version=f"cni-agent {__version__}", help="print the version, and exit")
    return parser


def parse_metrics_address(text: str) -> str:
    """``unix:/PATH`` or ``127.0.0.1:PORT``, unchanged. Raises: ValueError."""
    if not text.startswith("unix:/"):
        ip, _, port = text.rpartition(":")
        if not ip_address(ip).is_loopback or ip_address(ip).version == 6 or not 0 < int(port) < 65536:
            raise ValueError(f'"{text}" is neither unix:/PATH nor a port of 127.0.0.1: metrics are local to this node')
    return text
