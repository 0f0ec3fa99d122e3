"""A Kubernetes API server in small: nodes and pods, list, watch and patch as they are on the wire.

How it works. Every change gets the next resourceVersion and goes into a history, from which watches are served: one JSON
object a line, chunked, ended by the server after `timeoutSeconds`. `compact()` drops the history, so that a watch from
before is answered with an ERROR event of code 410, as the real server's watch cache does it, and the next page of a list
with HTTP 410. Patches are strategic merge patches: maps are merged, null deletes, conditions are merged by their type; the
status subresource changes metadata and status alone. Errors are Status objects.

What `rules` do not allow is refused with 403: they are those of our manifest's ClusterRole, so a call that flanneld makes and the
manifest forgets fails every test of it.

`faults` are taken one for each request, first come first served: a function that gets the request handler and returns True
where it has done all that is to be done. `requests` is what was asked: method, path with query, headers, body.

Source: Kubernetes API concepts; kubernetes/apiserver (handlers, storage/cacher); api-conventions.md, "Strategic Merge Patch".
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from support.manifest import Action, Rules, action_of, allows, rules_of_the_manifest
from support.waiting import SECONDS

STRATEGIC = "application/strategic-merge-patch+json"
REASONS = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 410: "Expired", 415: "UnsupportedMediaType"}
Fault = Callable[["Handler"], bool]


@dataclass
class Request:
    """A received request."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class ApiServer:
    """Started by `with`. `token`: what must be sent, "" for nothing; `tls`: a context, None for plain HTTP."""

    token: str = ""
    tls: ssl.SSLContext | None = None
    host: str = "127.0.0.1"
    port: int = 0
    bookmark_seconds: float = 0.0
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    rules: Rules = field(default_factory=rules_of_the_manifest)
    allowed: set[Action] = field(default_factory=set)
    """Actions that were asked for and allowed, without the names of objects."""

    def __post_init__(self) -> None:
        self.version = 100
        self.oldest = 100
        self.history: list[tuple[int, str, dict[str, Any]]] = []
        self.changed = threading.Condition()
        self.stopping = False
        self.connections: set[socket.socket] = set()
        self.watching = 0

    def __enter__(self) -> ApiServer:
        server = self

        class Bound(Handler):
            api = server

        self._server = ThreadingHTTPServer((self.host, self.port), Bound)
        self._server.daemon_threads = False
        self.port = self._server.server_port
        self.stopping = False
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self.changed:
            self.stopping = True
            self.changed.notify_all()
        self._server.shutdown()
        self.disconnect()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    def disconnect(self) -> None:
        """Cut every connection, in the middle of whatever it does."""
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    # ---- what is stored -----------------------------------------------------------------------

    def put(self, node: dict[str, Any]) -> None:
        name = node["metadata"]["name"]
        with self.changed:
            self._record("MODIFIED" if name in self.nodes else "ADDED", deepcopy(node))

    def delete(self, name: str) -> None:
        with self.changed:
            self._record("DELETED", deepcopy(self.nodes[name]))

    def annotate(self, name: str, **annotations: str | None) -> None:
        """Set annotations by their short names, `_` for `-`; None deletes."""
        prefix = "flannel.alpha.coreos.com/"
        change = {prefix + key.replace("_", "-"): value for key, value in annotations.items()}
        with self.changed:
            self._record("MODIFIED", merge(self.nodes[name], {"metadata": {"annotations": change}}))

    def _record(self, kind: str, node: dict[str, Any]) -> None:
        self.version += 1
        node["metadata"]["resourceVersion"] = str(self.version)
        name = node["metadata"]["name"]
        if kind == "DELETED":
            del self.nodes[name]
        else:
            self.nodes[name] = node
        self.history.append((self.version, kind, deepcopy(node)))
        self.changed.notify_all()

    def compact(self) -> None:
        """Drop the history: a watcher that is behind must list again."""
        with self.changed:
            self.version += 1
            self.oldest = self.version
            self.history.clear()

    def wait_for_watch(self, count: int = 1, seconds: float = SECONDS) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.watching >= count, seconds)

    def asked(self, method: str = "", word: str = "") -> list[Request]:
        """Requests of a method whose path or query has the word."""
        return [r for r in self.requests if method in r.method and word in f"{r.path}?{r.query}"]


class Handler(BaseHTTPRequestHandler):
    api: ApiServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        self.request.settimeout(20)
        if self.api.tls is not None:
            try:
                self.request = self.api.tls.wrap_socket(self.request, server_side=True)
            except (ssl.SSLError, OSError):
                self.request.close()
        super().setup()
        self.api.connections.add(self.request)

    def finish(self) -> None:
        self.api.connections.discard(self.request)
        try:
            super().finish()
        except OSError:
            pass
        self.request.close()

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    # ---- answering ----------------------------------------------------------------------------

    def do_GET(self) -> None:
        if not self._begin():
            return
        parts = [unquote(part) for part in self.asked.path.strip("/").split("/")]
        match parts[2:]:
            case ["nodes"] if self.asked.query.get("watch") == "true":
                self._watch()
            case ["nodes"]:
                self._list()
            case ["nodes", name] if name in self.api.nodes:
                self.answer(200, self.api.nodes[name])
            case ["namespaces", namespace, "pods", name] if f"{namespace}/{name}" in self.api.pods:
                self.answer(200, self.api.pods[f"{namespace}/{name}"])
            case _:
                self.fail(404, f'{parts[-2]} "{parts[-1]}" not found')

    def do_PATCH(self) -> None:
        if not self._begin():
            return
        parts = [unquote(part) for part in self.asked.path.strip("/").split("/")]
        if self.headers["Content-Type"] != STRATEGIC:
            self.fail(415, "the body of the request was in an unknown format")
        elif parts[2] != "nodes" or parts[4:] != ["status"]:
            self.fail(403, f"cannot patch resource {'/'.join(parts[2:])}")
        elif parts[3] not in self.api.nodes:
            self.fail(404, f'nodes "{parts[3]}" not found')
        else:
            change = {key: value for key, value in json.loads(self.asked.body).items() if key in ("metadata", "status")}
            with self.api.changed:
                self.api._record("MODIFIED", merge(self.api.nodes[parts[3]], change))
            self.answer(200, self.api.nodes[parts[3]])

    def _begin(self) -> bool:
        """Note the request; answer it where it is refused or a fault is due."""
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.asked = Request(self.command, url.path, query, dict(self.headers.items()), body)
        self.api.requests.append(self.asked)
        if self.api.token and self.headers.get("Authorization") != f"Bearer {self.api.token}":
            self.fail(401, "Unauthorized")
            return False
        action = action_of(self.command, url.path, query)
        if not allows(self.api.rules, action):
            self.fail(403, str(action))
            return False
        self.api.allowed.add(Action(action.verb, action.group, action.resource))
        if self.api.faults:
            return not self.api.faults.pop(0)(self)
        return True

    def answer(self, status: int, content: Any) -> None:
        self.answer_bytes(status, json.dumps(content).encode())

    def answer_bytes(self, status: int, body: bytes, length: int = -1) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) if length < 0 else length))
        self.end_headers()
        self.wfile.write(body)

    def fail(self, code: int, message: str) -> None:
        self.answer(code, status(code, message))

    def _list(self) -> None:
        """Pages of `limit`; the continue token is the version and the number of the next object."""
        api, limit = self.api, int(self.asked.query.get("limit") or 0)
        with api.changed:
            version, _, first = self.asked.query.get("continue", "").partition(":")
            version = version or str(api.version)
            if int(version) < api.oldest:
                self.fail(410, "The provided continue parameter is too old to display a consistent list result.")
                return
            names = sorted(api.nodes)
            begin, end = int(first or 0), int(first or 0) + (limit or len(names))
            metadata = {"resourceVersion": version} | ({"continue": f"{version}:{end}"} if end < len(names) else {})
            items = [api.nodes[name] for name in names[begin:end]]
            self.answer(200, {"kind": "NodeList", "apiVersion": "v1", "metadata": metadata, "items": items})

    def _watch(self) -> None:
        api, version = self.api, int(self.asked.query["resourceVersion"])
        until = time.monotonic() + float(self.asked.query.get("timeoutSeconds") or 300)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if version < api.oldest:
            self.event("ERROR", status(410, f"too old resource version: {version} ({api.oldest})"))
            self.wfile.write(b"0\r\n\r\n")
            return
        with api.changed:
            api.watching += 1
            api.changed.notify_all()
        try:
            self._stream(version, until)
        finally:
            with api.changed:
                api.watching -= 1

    def _stream(self, version: int, until: float) -> None:
        api = self.api
        wants_bookmarks = self.asked.query.get("allowWatchBookmarks") == "true" and api.bookmark_seconds
        while not api.stopping and time.monotonic() < until:
            with api.changed:
                seconds = min(until - time.monotonic(), api.bookmark_seconds or 0.1)
                api.changed.wait_for(lambda seen=version: api.stopping or (api.history and api.history[-1][0] > seen), seconds)
                due = [(kind, node) for changed_at, kind, node in api.history if changed_at > version]
                version = api.version
            for kind, node in due:
                self.event(kind, node)
            if not due and wants_bookmarks:
                self.event("BOOKMARK", {"kind": "Node", "apiVersion": "v1", "metadata": {"resourceVersion": str(version)}})
        self.wfile.write(b"0\r\n\r\n")

    def event(self, kind: str, item: dict[str, Any]) -> None:
        self.chunk(json.dumps({"type": kind, "object": item}).encode() + b"\n")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


def status(code: int, message: str) -> dict[str, Any]:
    """Return the server's error object."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": REASONS.get(code, "InternalError"),
        "code": code,
    }


def merge(there: Any, change: Any, key: str = "") -> Any:
    """A strategic merge patch."""
    if isinstance(there, list) and key == "conditions":
        by_type = {item["type"]: item for item in there}
        for item in change:
            by_type[item["type"]] = merge(by_type.get(item["type"], {}), item)
        return list(by_type.values())
    if not isinstance(there, dict) or not isinstance(change, dict):
        return deepcopy(change)
    out = deepcopy(there)
    for name, value in change.items():
        if value is None:
            out.pop(name, None)
        else:
            out[name] = merge(out.get(name, {} if isinstance(value, dict) else []), value, name)
    return out


def node(number: int, *cidrs: str, **annotations: str) -> dict[str, Any]:
    """Return a node as the controller manager and flanneld leave it; without annotations, as flanneld finds it."""
    prefix = "flannel.alpha.coreos.com/"
    pod_cidrs = list(cidrs or [f"10.244.{number}.0/24"])
    written = {prefix + key.replace("_", "-"): value for key, value in annotations.items()}
    return {
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {"name": f"node{number}", "annotations": {"node.alpha.kubernetes.io/ttl": "0"} | written},
        "spec": {"podCIDR": pod_cidrs[0], "podCIDRs": pod_cidrs},
        "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]},
    }


def vxlan(number: int) -> dict[str, str]:
    """The annotations of a VXLAN node."""
    return {
        "kube_subnet_manager": "true",
        "backend_type": "vxlan",
        "backend_data": json.dumps({"VNI": 1, "VtepMAC": f"12:c6:65:89:b4:{number:02x}"}, separators=(",", ":")),
        "public_ip": f"192.168.123.{number}",
    }
