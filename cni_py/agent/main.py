"""The command ``cni-agent``: listening socket, signals, metrics server, service manager. Its options: options.py."""

from __future__ import annotations

import os
import resource
import signal

from cni_py.agent import listener as listening
from cni_py.agent.listener import Listener
from cni_py.agent.log import log
from cni_py.agent.options import build
from cni_py.agent.server import Agent
from cni_py.agent.warm_up import warm_up
from cni_py.node import systemd
from cni_py.node.health import Health
from cni_py.node.http_server import listen_tcp, listen_unix


def main() -> int:
    """See ``cni-agent --help`` and docs/agent.md. Returns: the exit status."""
    options = build().parse_args()
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
