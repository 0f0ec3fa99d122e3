"""health.py and http_server.py: probes, reasons and metrics over HTTP, also beside clients that hang."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest

from cni_py.node import health as health_module
from cni_py.node import http_server
from cni_py.node.health import Health
from cni_py.node.metrics import Registry
from support.waiting import SECONDS


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


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
    health.count("repairs_total", "Restored: \\ and\nmore.", 0)
    health.count("repairs_total", "Restored: \\ and\nmore.")
    health.count("repairs_total", "Restored: \\ and\nmore.", 2)
    status, content_type, text = ask(health, "/metrics")
    assert (status, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    lines = text.splitlines()
    assert "# TYPE cni_py_flanneld_peers gauge" in lines
    assert "cni_py_flanneld_peers 4999" in lines
    assert r"# HELP cni_py_flanneld_repairs_total Restored: \\ and\nmore." in lines
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


def test_silent_clients_keep_no_probe_waiting(health: Health) -> None:
    """More of them than there are places, from the source that the probe comes from."""
    hanging = [socket.create_connection(("127.0.0.1", health.port)) for _ in range(2 * http_server.MAX_CONNECTIONS)]
    try:
        for number, sock in enumerate(hanging):
            try:
                sock.sendall(b"GET /healthz HTTP/1.1\r\n"[:number])
            except ConnectionError:  # evicted
                pass
        for _ in range(5):
            began = monotonic()
            assert ask(health, "/healthz")[0] == 200
            assert monotonic() - began < http_server.REQUEST_SECONDS / 2  # after which a silent one would make room anyway
    finally:
        for sock in hanging:
            sock.close()


def is_open(sock: socket.socket) -> bool:
    sock.settimeout(0.01)
    try:
        return sock.recv(1) != b""
    except TimeoutError:
        return True
    except ConnectionError:
        return False


@pytest.mark.parametrize(
    ("limit", "most"), [("MAX_OF_SOURCE", http_server.MAX_OF_SOURCE), ("MAX_CONNECTIONS", http_server.MAX_CONNECTIONS)]
)
def test_oldest_silent_client_makes_room(health: Health, monkeypatch: pytest.MonkeyPatch, limit: str, most: int) -> None:
    monkeypatch.setattr(http_server, "MAX_OF_SOURCE", most)  # all come from one
    clients = []
    try:
        for _ in range(most + 3):
            clients.append(socket.create_connection(("127.0.0.1", health.port)))
            assert ask(health, "/healthz")[0] == 200  # so it has been accepted, and evicts the oldest itself
        assert [is_open(sock) for sock in clients] == [False] * 4 + [True] * (most - 1)
    finally:
        for sock in clients:
            sock.close()


def test_bound_of_a_source_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has all that it may have costs itself alone."""
    monkeypatch.setattr(http_server, "MAX_CONNECTIONS", http_server.MAX_OF_SOURCE + 2)
    health = Health("127.0.0.1", free_port())
    health.start()
    first = socket.create_connection(("127.0.0.1", health.port), source_address=("127.0.0.9", 0))
    others = []
    try:
        for _ in range(3 * http_server.MAX_OF_SOURCE):
            others.append(socket.create_connection(("127.0.0.1", health.port), source_address=("127.0.0.2", 0)))
            assert ask(health, "/healthz")[0] == 200
        assert is_open(first)
        assert sum(map(is_open, others)) == http_server.MAX_OF_SOURCE
    finally:
        for sock in [first, *others]:
            sock.close()
        health.stop()


@pytest.mark.parametrize(
    ("address", "source"),
    [
        (("10.1.2.3", 4711), "10.1.2.3"),
        (("::ffff:10.1.2.3", 4711, 0, 0), "10.1.2.3"),
        (("2001:db8:1:2:3:4:5:6", 4711, 0, 0), "20010db800010002"),
        (("fe80::1%eth0", 4711, 0, 2), "fe80000000000000"),
        ("", "unix"),
    ],
)
def test_source_is_an_address_or_a_network_of_a_host(address: object, source: str) -> None:
    assert http_server._source(address) == source


def test_client_that_does_not_take_its_answer_is_cut_off(health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "REQUEST_SECONDS", 0.3)
    health.set_unready("x" * 5_000_000)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", health.port))
        sock.sendall(b"GET /readyz HTTP/1.1\r\n\r\n")
        assert ask(health, "/healthz")[0] == 200, "nor does it keep another one waiting"
        deadline = monotonic() + 10
        while health._server is not None and len(health._server._connections) > 0:
            assert monotonic() < deadline
            sleep(0.01)


def test_large_answer_arrives_whole(health: Health) -> None:
    health.set_unready("x" * 5_000_000)
    assert len(ask(health, "/readyz")[2]) == len("flanneld is not ready yet\n") + 5_000_000


def test_client_that_drips_is_cut_off(health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "REQUEST_SECONDS", 0.3)
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
    assert took < SECONDS  # it would drip forever


@pytest.mark.parametrize("request_text", ["GET /healthz", "rubbish", "GET  /healthz HTTP/1.0 x", "\r\n", "\0\xff\r\n"])
def test_rubbish_is_a_bad_request(health: Health, request_text: str) -> None:
    with socket.create_connection(("127.0.0.1", health.port), timeout=10) as sock:
        sock.sendall(request_text.encode("latin-1") + b"\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.0 400 Bad Request\r\n")


def test_body_is_read_and_ignored(health: Health) -> None:
    """Closed with bytes unread, the connection would be reset, and the answer lost."""
    with socket.create_connection(("127.0.0.1", health.port), timeout=10) as sock:
        sock.sendall(b"GET /healthz HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000)
        sleep(0.1)
        answer = b"".join(iter(lambda: sock.recv(1000), b""))
    assert answer.endswith(b"flanneld is running")


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


def test_port_0_is_no_server() -> None:
    health = Health("0.0.0.0", 0)
    threads = threading.active_count()
    health.start()
    assert threading.active_count() == threads
    health.set_ready()
    health.count("repairs_total", "Restored.")
    health.stop()


@pytest.mark.parametrize(("ip", "warnings"), [("0.0.0.0", 1), ("127.0.0.1", 0)])
def test_listening_on_all_addresses_is_warned_of(monkeypatch: pytest.MonkeyPatch, ip: str, warnings: int) -> None:
    logged: list[str] = []
    monkeypatch.setattr(health_module.log, "warning", logged.append)
    health = Health(ip, free_port())
    health.start()
    health.stop()
    assert len(logged) == warnings
    assert all("-healthz-ip" in line for line in logged)


def test_bug_in_a_metric_ends_no_probe(health: Health, capsys: pytest.CaptureFixture[str]) -> None:
    health.metrics.before_exposition(lambda: 1 / 0)
    assert ask(health, "/metrics")[0] == 500
    assert ask(health, "/healthz")[0] == 200
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_server_of_another_program_on_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    health = Health(program="cni-agent", registry=Registry("cni_py_"))
    health.start(http_server.listen_unix(path))
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            sock.sendall(b"GET /healthz HTTP/1.0\n\n")
            text = b"".join(iter(lambda: sock.recv(1000), b"")).decode()
        assert text.startswith("HTTP/1.0 200 OK\r\n")
        assert text.endswith("\r\n\r\ncni-agent is running")
        assert "cni_py_ready 0" in health.metrics.exposition().splitlines()
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
