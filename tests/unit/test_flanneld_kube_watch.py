"""flanneld/kube_*.py: leases in the Kubernetes API that are watched, through outages of any kind."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from cni_py.datastore.errors import Refused, StoreError, Unavailable
from cni_py.datastore.kubernetes import api as kube_api
from cni_py.flanneld.lease import Attributes
from cni_py.flanneld.stores import SNAPSHOT_COMPLETE, Gone
from cni_py.flanneld.stores.kubernetes import NODES
from support.apiserver import ApiServer, Handler, node, status, vxlan
from support.kube import CONFIG, OURS, Cluster, network, subnet
from support.waiting import until
from support.watching import Watching

for package in ("urllib3", "yaml"):
    pytest.importorskip(package, reason="urllib3 and PyYAML are not installed: pip install 'cni-py[flanneld]'")

SOON_SECONDS = 15.0
"""A deadline for a busy machine; other waits take a minute at least."""


# Watching


def test_watch_begins_with_all_nodes_in_pages_and_follows(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_api, "PAGE", 7)
    for number in range(2, 31):
        cluster.server.put(node(number, **vxlan(number)))
    with Watching(cluster.store) as watcher:
        watcher.wait_for_count(29)
        assert watcher.sets[-1][subnet("10.244.9.0/24")].attributes == Attributes(
            IPv4Address("192.168.123.9"), None, "vxlan", {"VNI": 1, "VtepMAC": "12:c6:65:89:b4:09"}
        )
        assert len(cluster.server.asked("GET", "continue")) == 4
        cluster.server.wait_for_watch()
        cluster.server.put(node(40, **vxlan(40)))
        watcher.wait_for_count(30)
        cluster.server.annotate("node40", public_ip="192.168.123.41")
        address = IPv4Address("192.168.123.41")
        watcher.until(lambda leases: leases[subnet("10.244.40.0/24")].attributes.public_ip == address)
        cluster.server.annotate("node40", kube_subnet_manager="false")
        watcher.wait_for_count(29)
        assert watcher.events[-1] == Gone(subnet("10.244.40.0/24")), "its flanneld may write it again"
        cluster.server.delete("node9")
        watcher.wait_for_count(28)
        assert watcher.events[-1] == Gone(subnet("10.244.9.0/24"), is_final=True)
        assert watcher.events.count(SNAPSHOT_COMPLETE) == 1
    assert len(cluster.server.asked("GET", "'watch'")) == 1


def test_page_that_is_too_large_is_asked_for_in_parts(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_api, "MAX_BYTES", 20_000)
    for number in range(2, 31):
        there = node(number, **vxlan(number))
        there["metadata"]["annotations"]["images"] = "x" * 2000
        cluster.server.put(there)
    with Watching(cluster.store) as watcher:
        watcher.wait_for_count(29)
    limits = {asked.query["limit"] for asked in cluster.server.requests if "limit" in asked.query}
    assert limits == {"500", "62", "7"}


def test_watch_asks_as_the_protocol_says(cluster: Cluster, watcher: Watching) -> None:
    (asked,) = cluster.server.asked("GET", "'watch'")
    assert asked.query | {"timeoutSeconds": ""} == {
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": "101",
        "timeoutSeconds": "",
    }
    assert 225 <= int(asked.query["timeoutSeconds"]) <= 300


def test_watch_says_nothing_of_what_is_no_lease(cluster: Cluster, watcher: Watching) -> None:
    watcher.wait_for_count(0)
    for _ in range(20):
        cluster.server.annotate("node1", something="else")
    cluster.server.put(node(2, **vxlan(2)))
    watcher.wait_for_count(1)
    assert len(watcher.batches) == 2


def test_kubelets_that_report_their_health_are_no_events(cluster: Cluster, watcher: Watching) -> None:
    """Kubelets write their Node every few minutes, and whenever one of its conditions changes."""
    for number in range(2, 52):
        cluster.server.put(node(number, **vxlan(number)))
    watcher.wait_for_count(50)
    count = len(watcher.events)
    for number in range(2, 52):
        cluster.server.put(node(number, **vxlan(number)) | {"status": {"conditions": [{"type": "Ready", "status": "True"}]}})
    cluster.server.put(node(60, **vxlan(60)))
    watcher.wait_for_count(51)
    assert len(watcher.events) == count + 1


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"public_ip": "nowhere"}, 'public-ip: "nowhere" is no IPv4 address'),
        ({"public_ip": "224.0.0.5"}, "public-ip: 224.0.0.5 is no address of a node: it is multicast"),
        ({"backend_type": "x" * 1000}, f'backend-type: "{"x" * 63}… (1002 characters) is no type of a back end'),
        ({"backend_data": "{"}, "backend-data is no JSON"),
        ({"backend_data": "[" * 100_000}, "backend-data is no JSON"),
    ],
)
def test_node_that_is_no_lease_drops_no_other_and_is_logged_once(
    cluster: Cluster, watcher: Watching, capfd: pytest.CaptureFixture[str], broken: dict[str, str], words: str
) -> None:
    cluster.server.put(node(2, **vxlan(2)))
    cluster.server.put(node(3, **vxlan(3) | broken))
    cluster.server.annotate("node3", something="else")
    cluster.server.put(node(4, **vxlan(4)))
    watcher.wait_for_count(2)
    assert capfd.readouterr().err.count(f'Error turning node "node3" to lease: {words}') == 1
    cluster.server.put(node(3, **vxlan(3)))
    watcher.wait_for_count(3)


def test_watch_goes_on_from_a_bookmark_when_the_server_ends_it(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_api, "WATCH_SECONDS", 2)
    cluster.server.bookmark_seconds = 0.1
    with Watching(cluster.store) as watcher:
        cluster.server.wait_for_watch()
        with cluster.server.changed:  # another resource's objects: nothing to see but the bookmark
            cluster.server.version += 1000
        until(lambda: len(cluster.server.asked("GET", "'watch'")) >= 2)
        cluster.server.wait_for_watch()
        cluster.server.put(node(2, **vxlan(2)))
        watcher.wait_for_count(1)
    assert int(cluster.server.asked("GET", "'watch'")[1].query["resourceVersion"]) > 1000
    assert len(cluster.server.asked("GET", "limit")) == 1


def test_version_that_is_gone_lists_again(cluster: Cluster, watcher: Watching, capfd: pytest.CaptureFixture[str]) -> None:
    cluster.server.put(node(2, **vxlan(2)))
    watcher.wait_for_count(1)
    with cluster.server.changed:  # without a watch: node2 goes, node3 comes, and the history is dropped
        cluster.server.disconnect()
        cluster.server.faults.append(lambda handler: handler.fail(503, "not yet") is None)
        cluster.server.history.clear()
        del cluster.server.nodes["node2"]
        cluster.server.version += 10
        cluster.server.oldest = cluster.server.version
        cluster.server.nodes["node3"] = node(3, **vxlan(3))
    watcher.until(lambda leases: list(leases) == [subnet("10.244.3.0/24")])
    assert watcher.batches[-1][-1] is SNAPSHOT_COMPLETE
    assert Gone(subnet("10.244.2.0/24")) in watcher.batches[-1]
    assert "too old resource version" in capfd.readouterr().err


def test_gone_as_a_status_and_in_the_middle_of_a_list(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_api, "PAGE", 1)
    cluster.server.put(node(2, **vxlan(2)))

    def compact(handler: Handler) -> bool:
        cluster.server.compact()
        return False

    cluster.server.faults += [lambda handler: False, compact, lambda handler: False, lambda handler: False]
    cluster.server.faults.append(lambda handler: handler.fail(410, "gone") is None)
    with Watching(cluster.store) as watcher:
        watcher.wait_for_count(1)
        cluster.server.wait_for_watch()
    assert [("continue" in asked.query, "watch" in asked.query) for asked in cluster.server.requests] == [
        (False, False),
        (True, False),  # 410
        (False, False),
        (True, False),
        (False, True),  # 410
        (False, False),
        (True, False),
        (False, True),
    ]


# Outages


def drop(handler: Handler) -> bool:
    handler.request.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True
    return True


def half_a_body(handler: Handler) -> bool:
    handler.answer_bytes(200, b'{"items": [', 1000)
    return drop(handler)


def half_a_line(handler: Handler) -> bool:
    if "watch" not in handler.asked.query:
        return drop(handler)
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.chunk(b'{"type": "ADDED", "object": {"metadata"')
    return drop(handler)


def half_a_line_that_ends_well(handler: Handler) -> bool:
    half_a_line(handler) if "watch" not in handler.asked.query else None
    if "watch" in handler.asked.query:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.chunk(b'{"type": "ADDED", "object": {"metadata"')
        handler.wfile.write(b"0\r\n\r\n")
    return True


def error_event(handler: Handler) -> bool:
    if "watch" not in handler.asked.query:
        handler.fail(500, "etcdserver: leader changed")
        return True
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.event("ERROR", status(500, "etcdserver: no leader"))
    handler.wfile.write(b"0\r\n\r\n")
    return True


FAULTS: dict[str, Callable[[Handler], bool]] = {
    "500": lambda handler: handler.fail(500, "etcdserver: request timed out") is None,
    "429": lambda handler: handler.fail(429, "too many requests") is None,
    "401": lambda handler: handler.fail(401, "Unauthorized") is None,
    "403": lambda handler: handler.fail(403, "nodes is forbidden") is None,
    "302": lambda handler: handler.answer_bytes(302, b"") is None,
    "no JSON": lambda handler: handler.answer_bytes(200, b"<html>") is None,
    "a JSON list": lambda handler: handler.answer_bytes(200, b"[1]") is None,
    "nested": lambda handler: handler.answer_bytes(200, b"[" * 100_000) is None,
    "no UTF-8": lambda handler: handler.answer_bytes(200, b"\xff\xfe") is None,
    "dropped": drop,
    "half a body": half_a_body,
    "half a line": half_a_line,
    "half a line that ends well": half_a_line_that_ends_well,
    "an ERROR event": error_event,
}


@pytest.mark.parametrize("name", FAULTS)
def test_outage_of_any_kind_keeps_the_leases_and_heals(
    cluster: Cluster, watcher: Watching, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    cluster.server.put(node(2, **vxlan(2)))
    watcher.wait_for_count(1)
    cluster.server.faults += [FAULTS[name]] * 3
    cluster.server.disconnect()
    until(lambda: not cluster.server.faults)
    cluster.server.wait_for_watch()
    cluster.server.put(node(3, **vxlan(3)))
    watcher.wait_for_count(2)
    assert all(len(leases) >= 1 for leases in watcher.sets[1:])
    log = capfd.readouterr().err
    assert log.count("the last known nodes stay") == log.count("responds again") <= 4
    assert log.count("the last known nodes stay") >= 1


@pytest.mark.parametrize("name", FAULTS)
def test_call_that_fails_is_one_error_in_words(cluster: Cluster, name: str) -> None:
    cluster.server.faults.append(FAULTS[name])
    with pytest.raises(StoreError) as caught:
        cluster.store.acquire(network(CONFIG), OURS, None)
    assert cluster.server.url in str(caught.value)
    assert "object at 0x" not in str(caught.value)
    assert isinstance(caught.value, Refused) == (name in ("401", "403", "302"))


def test_slow_server_is_given_up(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_api, "READ_SECONDS", 0.2)
    release = threading.Event()
    cluster.server.faults.append(lambda handler: release.wait(60) and drop(handler))
    began = time.monotonic()
    with pytest.raises(Unavailable, match=r"does not answer: .*timed out"):
        cluster.store.acquire(network(CONFIG), OURS, None)
    assert time.monotonic() - began < SOON_SECONDS
    release.set()
    cluster.store.acquire(network(CONFIG), OURS, None)


def test_watch_whose_server_falls_silent_is_restarted(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_api, "WATCH_READ_SECONDS", 0.3)
    with Watching(cluster.store) as watcher:
        until(lambda: len(cluster.server.asked("GET", "'watch'")) >= 2)
        cluster.server.put(node(2, **vxlan(2)))
        watcher.wait_for_count(1)


def test_server_that_comes_later_and_goes_and_comes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with ApiServer() as server:
        cluster = Cluster(server, tmp_path)
        server.put(node(2, **vxlan(2)))
    with Watching(cluster.store) as watcher:
        until(lambda: "Connection refused" in capfd.readouterr().err)
        assert not watcher.sets
        with server:
            watcher.wait_for_count(1)
            server.wait_for_watch()
        with pytest.raises(Unavailable, match=r"does not answer: .*Connection refused"):
            cluster.store.ready()
        with server:
            server.wait_for_watch()
            server.put(node(3, **vxlan(3)))
            watcher.wait_for_count(2)
    cluster.store.close()


def test_watch_stops_at_once(cluster: Cluster, watcher: Watching) -> None:
    watcher.wait_for_count(0)
    began = time.monotonic()
    watcher.__exit__()
    assert time.monotonic() - began < SOON_SECONDS
    until(lambda: not any(thread.name == "kube-watch" for thread in threading.enumerate()))


def test_watch_whose_reader_is_ending_is_ended_from_another_thread(cluster: Cluster) -> None:
    """Its reader has closed the socket, and has not returned the connection to the pool yet."""
    with cluster.store._api.watch(NODES, "1") as watch:
        assert watch._response._connection is not None
        watch._response._connection.close()
        watch.shut()


def test_config_that_is_wrong_is_waited_for(cluster: Cluster, capfd: pytest.CaptureFixture[str]) -> None:
    cluster.configure({"Network": "ten"})
    with Watching(cluster.store) as watcher:
        until(lambda: "error parsing subnet config" in capfd.readouterr().err)
        cluster.configure(CONFIG)
        watcher.wait_for_count(0)
