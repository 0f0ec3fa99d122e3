"""Daemons on the lab's machines: flanneld on every node, and etcd. Each has a log in the lab's directory."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cni_py.lab.plan import CONFIG_KEY
from cni_py.lab.programs import ENVIRONMENT, LabFailed, run, tool

if TYPE_CHECKING:
    from collections.abc import Sequence
    from threading import Event

    from cni_py.lab.machine import Machine

READY_SECONDS = 20
_LOG_LINES = 8
_IN_BACKGROUND = 'setsid "$@" </dev/null >&2 & echo $!'


@dataclass(frozen=True, slots=True)
class Service:
    """A process on a machine; ``pid`` in the machine's PID namespace."""

    machine: Machine
    pid: int
    log_path: str

    @property
    def is_alive(self) -> bool:
        return os.path.exists(self.machine.path(f"/proc/{self.pid}"))

    def kill(self) -> None:
        """SIGKILL; absence is success."""
        if not self.is_alive:
            return
        self.machine.run("sh", "-c", 'kill -KILL "$1" 2>/dev/null || true', "sh", str(self.pid))
        while self.is_alive:
            time.sleep(0.002)

    def last_lines(self) -> str:
        """The end of its log."""
        try:
            with open(self.log_path, errors="replace") as file:
                return "\n".join(file.read().splitlines()[-_LOG_LINES:])
        except FileNotFoundError:
            return ""


def start(machine: Machine, argv: Sequence[str], log_path: str, env: dict[str, str]) -> Service:
    """Start a program on a machine, in a session of its own. Raises: LabFailed."""
    with open(log_path, "ab") as log:
        done = subprocess.run(
            machine.command("sh", "-c", _IN_BACKGROUND, "sh", *argv),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            check=False,
        )
    if not done.stdout.strip().isdecimal():
        raise LabFailed(f"could not start {argv[0]} on {machine.name}", f"see its log: {log_path}")
    return Service(machine, int(done.stdout), log_path)


class Notice:
    """The receiving end of a service's ``NOTIFY_SOCKET``."""

    def __init__(self, directory: str, machine: Machine) -> None:
        self.environment = {"NOTIFY_SOCKET": f"/run/lab/notify/{machine.name}"}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        os.makedirs(f"{directory}/notify", exist_ok=True)
        self._directory_fd = os.open(f"{directory}/notify", os.O_PATH | os.O_DIRECTORY)
        self._name = machine.name
        self._remove()
        # By way of the descriptor: a socket's path has 107 bytes at most, and the lab's directory may be longer.
        self._socket.bind(f"/proc/self/fd/{self._directory_fd}/{machine.name}")

    def wait_ready(self, service: Service, stop: Event, seconds: float = READY_SECONDS) -> None:
        """Wait for READY=1. Raises: LabFailed if the service exits, is not ready in time, or ``stop`` is set."""
        deadline = time.monotonic() + seconds
        self._socket.settimeout(0.02)
        while time.monotonic() < deadline and not stop.is_set():
            try:
                if b"READY=1" in self._socket.recv(4096).split(b"\n"):
                    return
            except TimeoutError:
                if not service.is_alive:
                    raise _failure(f"flanneld on {service.machine.name} has exited", service) from None
        raise _failure(f"flanneld on {service.machine.name} was not ready in {seconds:g} seconds", service)

    def close(self) -> None:
        """Later notifications are refused, which services ignore, as sd_notify(3) asks for."""
        self._socket.close()
        self._remove()
        os.close(self._directory_fd)

    def _remove(self) -> None:
        try:
            os.unlink(self._name, dir_fd=self._directory_fd)
        except FileNotFoundError:
            pass


def _failure(what: str, service: Service) -> LabFailed:
    return LabFailed(what, service.last_lines() or "its log is empty")


def wait_for_etcd(etcd: Service, seconds: float = READY_SECONDS) -> None:
    """Wait until it is healthy. Raises: LabFailed if it exits, or is not healthy in time."""
    deadline = time.monotonic() + seconds
    while etcd.is_alive and time.monotonic() < deadline:
        try:
            etcdctl(etcd.machine, "endpoint", "health")
        except LabFailed:
            time.sleep(0.02)
        else:
            return
    raise _failure("etcd does not reply" if etcd.is_alive else "etcd has exited", etcd)


def put_config(etcd: Service, config: str) -> None:
    """Write flannel's network configuration, as the deployment guide does."""
    etcdctl(etcd.machine, "put", CONFIG_KEY, config)


def etcdctl(machine: Machine, *argv: str) -> str:
    """Raises: LabFailed."""
    command = [tool("etcdctl"), "--endpoints=http://127.0.0.1:2379", "--dial-timeout=1s", "--command-timeout=2s", *argv]
    env = ENVIRONMENT | {"ETCDCTL_API": "3"}
    return run([*machine.enter_network, *command], env=env, what=f"etcdctl {argv[0]}")
