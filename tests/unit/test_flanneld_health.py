"""health.py: probes, reasons and figures over HTTP, also beside clients that hang."""

from __future__ import annotations

import http.client
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

from cni_py.flanneld import health as module
from cni_py.flanneld.health import Health

SOON_SECONDS = 15.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture(autouse=True)
def _stops_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)


@pytest.fixture
def health() -> Iterator[Health]:
    made = Health("127.0.0.1", free_port())
    made.start()
    yield made
    made.stop()


def ask(health: Health, path: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, str, str]:
    connection = http.client.HTTPConnection(host, health.port, timeout=10)
    try:
        connection.request(method, path)
        reply = connection.getresponse()
        return reply.status, reply.headers["Content-Type"], reply.read().decode()
    finally:
        connection.close()


def test_healthz_answers_at_once(health: Health) -> None:
    assert ask(health, "/healthz") == (200, "text/plain; charset=utf-8", "flanneld is running")


def test_readyz_gives_its_reasons(health: Health) -> None:
    assert ask(health, "/readyz")[::2] == (503, "flanneld is not ready yet\nstarting")
    health.set_unready("etcd does not answer", "no subnet\nis leased")
    assert ask(health, "/readyz")[::2] == (503, "flanneld is not ready yet\netcd does not answer\nno subnet is leased")
    health.set_ready()
    assert ask(health, "/readyz")[::2] == (200, "flanneld is ready")
    health.set_ready("by what was saved")
    assert ask(health, "/readyz")[::2] == (200, "flanneld is ready\nby what was saved")
    health.set_unready()
    assert ask(health, "/readyz")[::2] == (503, "flanneld is not ready yet")


def test_metrics(health: Health) -> None:
    health.gauge("peers", "Nodes that we know a way to.", 5000)
    health.gauge("peers", "Nodes that we know a way to.", 4999)
    health.count("repairs_total", "Put back: \\ and\nmore.", 0)
    health.count("repairs_total", "Put back: \\ and\nmore.")
    health.count("repairs_total", "Put back: \\ and\nmore.", 2)
    status, content_type, text = ask(health, "/metrics")
    assert (status, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    lines = text.splitlines()
    assert "# TYPE cni_py_flanneld_peers gauge" in lines
    assert "cni_py_flanneld_peers 4999" in lines
    assert r"# HELP cni_py_flanneld_repairs_total Put back: \\ and\nmore." in lines
    assert "# TYPE cni_py_flanneld_repairs_total counter" in lines
    assert "cni_py_flanneld_repairs_total 3" in lines
    assert "cni_py_flanneld_ready 0" in lines
    assert text.endswith("\n")
    health.set_ready()
    assert "cni_py_flanneld_ready 1" in ask(health, "/metrics")[2].splitlines()


def test_other_paths_and_methods(health: Health) -> None:
    assert ask(health, "/")[::2] == (404, "404 page not found\n")
    assert ask(health, "/healthz?verbose=1")[0] == 200
    assert ask(health, "/healthz", "HEAD") == (200, "text/plain; charset=utf-8", "")
    assert ask(health, "/healthz", "POST")[0] == 501


def test_clients_that_hang_keep_no_probe_waiting(health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLIENT_SECONDS", 60.0)
    hanging = [socket.create_connection(("127.0.0.1", health.port)) for _ in range(module.MAX_CLIENTS // 2)]
    try:
        for number, sock in enumerate(hanging):
            sock.sendall(b"GET /healthz HTTP/1.1\r\n"[:number])
        began = monotonic()
        assert ask(health, "/healthz")[0] == 200
        assert monotonic() - began < SOON_SECONDS
    finally:
        for sock in hanging:
            sock.close()


def test_client_that_drips_is_cut_off(health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLIENT_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", health.port), timeout=10) as sock:
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.02):
                try:
                    sock.sendall(b"G")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        began = monotonic()
        try:
            assert sock.recv(100) == b""
        except ConnectionResetError:
            pass
        took = monotonic() - began
        stop.set()
        dripping.join()
    assert took < SOON_SECONDS


def test_more_clients_than_places_are_refused_and_come_in_later(health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLIENT_SECONDS", 0.3)
    hanging = [socket.create_connection(("127.0.0.1", health.port)) for _ in range(module.MAX_CLIENTS)]
    try:
        deadline = monotonic() + 10
        while True:
            try:
                status = ask(health, "/healthz")[0]
            except (http.client.HTTPException, OSError):
                assert monotonic() < deadline
            else:
                break
        assert status == 200
    finally:
        for sock in hanging:
            sock.close()


def test_request_without_end_is_answered_or_dropped(health: Health) -> None:
    with socket.create_connection(("127.0.0.1", health.port), timeout=10) as sock:
        try:
            sock.sendall(b"GET /" + b"x" * 100_000)
            answer = sock.recv(100)
        except ConnectionError:
            answer = b""
    assert not answer.startswith(b"HTTP/1.0 200")
    assert ask(health, "/healthz")[0] == 200


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this host has no IPv6")
@pytest.mark.parametrize("ip", ["0.0.0.0", "::"])
def test_any_address_means_both_families(ip: str) -> None:
    health = Health(ip, free_port())
    health.start()
    try:
        assert [ask(health, "/healthz", host=host)[0] for host in ("127.0.0.1", "::1")] == [200, 200]
    finally:
        health.stop()


def listening() -> set[str]:
    """The sockets of this process that wait for connections."""
    own = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{fd}")}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]]
    return {f"socket:[{row[9]}]" for row in rows if row[3] == "0A"} & own


def test_port_0_is_no_server() -> None:
    before, health = listening(), Health("0.0.0.0", 0)
    health.start()
    try:
        assert listening() == before
        health.set_ready()
        health.count("repairs_total", "Put back.")
        assert health.answer("/readyz")[0] == 200
    finally:
        health.stop()


def test_server_is_one_that_listens() -> None:
    """Else the test before this one could not fail."""
    before, health = listening(), Health("127.0.0.1", free_port())
    health.start()
    try:
        assert len(listening() - before) == 1
    finally:
        health.stop()


def test_port_that_is_taken_is_an_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            Health("127.0.0.1", taken.getsockname()[1]).start()


def test_port_is_free_after_stop() -> None:
    port = free_port()
    for _ in range(2):
        health = Health("127.0.0.1", port)
        health.start()
        assert ask(health, "/healthz")[0] == 200
        health.stop()
