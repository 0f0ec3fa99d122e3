"""extension: commands of the user's make the routes to the other nodes. For trying out a new kind of back end.

    PreStartupCommand     before the node has a subnet; what it prints is published with the node's lease
    PostStartupCommand    when it has one, before any peer: NETWORK, SUBNET, IPV6SUBNET, PUBLIC_IP, PUBLIC_IPV6 are its own
    SubnetAddCommand      for each peer: SUBNET, IPV6SUBNET, PUBLIC_IP, PUBLIC_IPV6 are the peer's, and so is what
                          its PreStartupCommand printed, on standard input
    SubnetRemoveCommand   when it has left: the same
    ShutdownCommand       by ``flanneld --cleanup``: SIGTERM leaves the way as it is, as with every back end

These are environment variables, empty where there is none; in the command ``$NAME`` and ``${NAME}`` stand for
them. There is no shell: the command is split as a shell would split it, and what only a shell can do is refused.
For a shell write ``sh -c '…'``. A command may take ``TIMEOUT_SECONDS``; then, and when flanneld is to end, it
is killed with what it started.
Output goes to the log. What failed is not tried again, except PostStartupCommand.

It differs from Go's flanneld, which splits at every blank and leaves quotes in; sets SUBNET and PUBLIC_IP alone for a
peer, though all four are documented; says ``<nil>`` and ``::/0`` where there is no IPv6; publishes standard error too,
and the interface's address even where -public-ip says another; never runs ShutdownCommand; waits without end; and
does not notice a peer that comes back with other data before it has left: here it is removed and added.

Source: flannel-io/flannel Documentation/extension.md, pkg/backend/extension.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from cni_py.errors import CniError
from cni_py.flanneld import backends
from cni_py.flanneld.backends import ENDING, BackendConfig
from cni_py.flanneld.lease import Attributes
from cni_py.node.log import error, info, warning

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cni_py.flanneld.backends import Change
    from cni_py.flanneld.iface import ExternalInterface
    from cni_py.flanneld.lease import Lease, Subnets
    from cni_py.flanneld.network import NetworkConfig
    from cni_py.netlink.socket import Rtnl
    from cni_py.node.stop import Stop

TYPE = "extension"
TIMEOUT_SECONDS = 30.0
OUTPUT_BYTES = 64 * 1024
LOOK_SECONDS = 0.2
"""Interval of checks whether a running command has to end."""
_QUOTED = re.compile(r"""'[^']*'|"(?:[^"\\]|\\.)*"|\\.""", re.DOTALL)
_FOR_A_SHELL = re.compile(r"[;&|<>()`]|\$\(")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


class CommandFailed(CniError):
    """A command could not be run, ended with another status than 0, or took too long."""


class Config(BackendConfig):
    pre_startup_command: str = Field(
        "", description="Run before the node has a subnet; what it prints is published with the node's lease."
    )
    post_startup_command: str = Field("", description="Run once the node has its subnet, before any peer.")
    subnet_add_command: str = Field(
        "", description="Run for each peer; what its `PreStartupCommand` printed is on standard input."
    )
    subnet_remove_command: str = Field("", description="Run when a peer has left, with the same on standard input.")
    shutdown_command: str = Field("", description="Run by `flanneld --cleanup`.")

    def commands(self) -> list[str]:
        return [field.alias or name for name, field in type(self).model_fields.items() if getattr(self, name)]

    @field_validator("*")
    @classmethod
    def _can_be_run(cls, command: str) -> str:
        words = shlex.split(command)  # raises ValueError where a quote does not end
        if (command and not words) or "\0" in command:
            raise ValueError("it is no command")
        found = _FOR_A_SHELL.search(_QUOTED.sub("", command))
        if found:
            raise ValueError(f"\"{found[0]}\" is for a shell, and commands are run without one: write sh -c '…'")
        return command


class Backend(backends.Backend):
    """See the package, and the head of this file."""

    def __init__(self, config: Config, network: NetworkConfig, external: ExternalInterface) -> None:
        self.config, self.network, self.external, self.mtu = config, network, external, external.mtu
        self._output: str | None = None
        self._started_for: Subnets | None = None
        self._known: dict[Subnets, Attributes] = {}
        """Peers about which SubnetAddCommand was run."""
        self._lock = threading.Lock()
        self._pending: dict[Subnets, Attributes | None] = {}
        """Data of each peer now about which no command was run since; None: it has left."""
        self._has_pending = threading.Event()

    def prepare(self, rtnl: Rtnl, former: Attributes | None) -> None:  # noqa: ARG002
        """Runs PreStartupCommand. Raises: CommandFailed."""
        command = self.config.pre_startup_command
        if command:
            self._output = run_command(command, {})
        else:
            info("No pre startup command configured - skipping")

    def attributes(self) -> Attributes:
        return Attributes(
            public_ip=self.external.public_ip if self.network.ipv4 else None,
            public_ipv6=self.external.public_ipv6 if self.network.ipv6 else None,
            backend_type=TYPE,
            backend_data=self._output,
        )

    def follow(self, own: Lease, changes: Sequence[Change]) -> None:
        """Runs PostStartupCommand for a subnet that is new; leaves the peers to :meth:`run`. Raises: CommandFailed."""
        with self._lock:
            for former, lease in changes:
                peer = lease or former
                if peer is not None:
                    self._pending.pop(peer.subnets, None)
                    self._pending[peer.subnets] = lease.attributes if lease else None
        command = self.config.post_startup_command
        if own.subnets != self._started_for:
            if command:
                run_command(command, variables_of(own.subnets, own.attributes, self.network))
            else:
                info("No post startup command configured - skipping")
            self._started_for = own.subnets
        self._has_pending.set()

    def run(self, stop: Stop) -> None:
        """Run the commands for peers that came and left, one at a time, until ``stop``."""
        with stop.calling(self._has_pending.set):
            while not stop.is_set():
                self._has_pending.wait()
                self._has_pending.clear()
                self.settle(stop)

    def settle(self, stop: threading.Event) -> None:
        """Run the commands for what is pending, those for peers that left or changed first; ends early at ``stop``."""
        with self._lock:
            pending = list(self._pending.items())
        for subnets, its in pending:
            known = self._known.get(subnets)
            if known is not None and known != its and not stop.is_set():
                info(f"Subnet removed: {subnets}")
                self._run_for(self.config.subnet_remove_command, subnets, known)
                del self._known[subnets]
        for subnets, its in pending:
            if stop.is_set():
                return
            if its is not None and subnets not in self._known:
                info(f"Subnet added: {subnets} via {its.public_ip or its.public_ipv6}")
                if its.backend_type != TYPE:
                    warning(f"Ignoring non-extension subnet: type={its.backend_type}")
                self._run_for(self.config.subnet_add_command, subnets, its)
                self._known[subnets] = its
            with self._lock:
                if self._pending.get(subnets) == its:  # else it has changed meanwhile
                    self._pending.pop(subnets, None)

    def _run_for(self, command: str, subnets: Subnets, its: Attributes) -> None:
        """Run a command about a peer of this back end."""
        if not command or its.backend_type != TYPE:
            return
        if its.backend_data is not None and not isinstance(its.backend_data, str):
            error(f"failed to unmarshal BackendData: that of {subnets} is no text: {its.backend_data!r:.100}")
            return
        try:
            run_command(command, variables_of(subnets, its), its.backend_data or "")
        except CommandFailed as fault:
            error(str(fault))

    def cleanup(self) -> None:
        """Runs ShutdownCommand. Raises: CommandFailed."""
        if self.config.shutdown_command:
            run_command(self.config.shutdown_command, {})


def variables_of(subnets: Subnets, attributes: Attributes, network: NetworkConfig | None = None) -> dict[str, str]:
    """Return what a command gets to know about a node, and about the network where one is given."""
    values: dict[str, Any] = {
        "SUBNET": subnets.ipv4,
        "IPV6SUBNET": subnets.ipv6,
        "PUBLIC_IP": attributes.public_ip,
        "PUBLIC_IPV6": attributes.public_ipv6,
    }
    if network is not None:
        values["NETWORK"] = network.network
    return {name: "" if value is None else str(value) for name, value in values.items()}


def run_command(command: str, variables: Mapping[str, str], stdin: str = "") -> str:
    """Run it to its end and log what it wrote; returns its standard output, stripped. Raises: CommandFailed.

    Input and output are memory files: what the command leaves running may keep them open, and is not waited for.
    """
    argv = [_VARIABLE.sub(lambda found: variables.get(found[1] or found[2], found[0]), word) for word in shlex.split(command)]
    with _memory("stdin") as given, _memory("stdout") as out, _memory("stderr") as err:
        given.write(f"{stdin}\n".encode())
        given.seek(0)
        reason = _run(argv, {**os.environ, **variables}, given, out, err)
        stdout, stderr = _content(out), _content(err)
    output = "\n".join(text for text in (stdout, stderr) if text)
    if reason:
        raise CommandFailed(f"failed to run command: {command} Err: {reason} Output: {output}")
    info(f"Ran command: {command}\n Output: {output}")
    return stdout


def _run(argv: list[str], env: Mapping[str, str], given: Any, out: Any, err: Any) -> str:
    """Return what went wrong; "" if nothing did."""
    try:
        process = subprocess.Popen(argv, env=env, stdin=given, stdout=out, stderr=err, start_new_session=True)
    except OSError as fault:
        return f'could not run "{argv[0]}": {fault.strerror}'
    deadline = monotonic() + TIMEOUT_SECONDS
    while (status := _status(process, min(deadline - monotonic(), LOOK_SECONDS))) is None:
        if ENDING.is_set() or monotonic() > deadline:
            os.killpg(process.pid, signal.SIGKILL)  # its session: what it started, too
            process.wait()
            return "flanneld ends, killed" if ENDING.is_set() else f"not done after {TIMEOUT_SECONDS:g} s, killed"
    return "" if status == 0 else f"killed by signal {-status}" if status < 0 else f"exit status {status}"


def _status(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Return what it ended with; ``None``: it has not ended within the time."""
    try:
        return process.wait(max(seconds, 0))
    except subprocess.TimeoutExpired:
        return None


def _memory(name: str) -> Any:
    return open(os.memfd_create(name), "w+b")


def _content(file: Any) -> str:
    """The program wrote by a descriptor of its own, with an offset that is ours too."""
    return os.pread(file.fileno(), OUTPUT_BYTES, 0).decode(errors="replace").strip()
