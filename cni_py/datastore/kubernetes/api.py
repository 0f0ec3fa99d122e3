"""The four calls of the Kubernetes API that flanneld makes, over urllib3: get, list, watch, patch.

urllib3 is imported here alone, and only where the Kubernetes API is used. Why it and no client of
Kubernetes': the watch must be closable from another thread, end when the peer is silent, and ask for
bookmarks, which keep the point from which it goes on young; and such clients build every field of every
node, of which three are read.

Every call returns or raises within ``READ_SECONDS``, or what a program takes that makes credentials; nothing is
retried here. Credentials and certificates are replaced while we run: each call looks whether files are others
or what a program gave has expired, and what the API refused is read again with the next call.

Source: Kubernetes API concepts: "Efficient detection of changes", "Retrieving large results sets in chunks".
"""

from __future__ import annotations

import json
import random
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from cni_py.datastore.errors import Refused, StoreError, Unavailable
from cni_py.datastore.kubernetes.config import Access, load_library
from cni_py.datastore.plaintext import warning_about
from cni_py.errors import InvalidConfig
from cni_py.node import log as klog

if TYPE_CHECKING:
    import urllib3

CONNECT_SECONDS = 3.0
READ_SECONDS = 10.0
WATCH_SECONDS = 300
"""The server ends a watch after this, or up to a quarter earlier, so that nodes do not come back all at once."""
WATCH_READ_SECONDS = 330.0
PAGE = 500
MAX_BYTES = 64 << 20
"""Limit of a response; a larger page is asked for in parts."""
MAX_LINE_BYTES = 16 << 20
USER_AGENT = "cni-py-flanneld"
STRATEGIC = "application/strategic-merge-patch+json"
KEEPALIVE = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),  # a server that vanished is noticed in half a minute
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
]


class Gone(StoreError):
    """The known version is too old to go on from: list again."""


class TooLarge(Refused):
    """The answer has more than ``MAX_BYTES``."""


class NotFound(Refused):
    """There is no such object."""


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a watch: ADDED, MODIFIED, DELETED or BOOKMARK, and the object."""

    kind: str
    item: dict[str, Any]


class KubeApi:
    """One API server, by the access that ``find`` finds, now and whenever it has changed. Safe from several threads.

    Raises: InvalidConfig.
    """

    def __init__(self, find: Callable[[], Access]) -> None:
        self._find = find
        self._access = find()
        self._urllib3 = load_library("urllib3", "urllib3")
        self._pool: urllib3.PoolManager | None = None
        self._lock = threading.Lock()
        if not self._access.has_tls and (text := warning_about(str(self), self._access.credentials)):
            klog.warning(text)
        if not self._access.is_verified:
            klog.warning(f"insecure-skip-tls-verify: any server that responds for {self} is trusted, and gets our credentials")
            self._urllib3.disable_warnings(self._urllib3.exceptions.InsecureRequestWarning)  # one for each request

    def __str__(self) -> str:
        return str(self._access)

    def get(self, path: str) -> dict[str, Any]:
        """Raises: StoreError."""
        return self._call("GET", path)

    def patch(self, path: str, change: Mapping[str, Any]) -> dict[str, Any]:
        """A strategic merge patch. Raises: StoreError."""
        body = json.dumps(change, separators=(",", ":"), ensure_ascii=False).encode()
        return self._call("PATCH", path, body, {"Content-Type": STRATEGIC})

    def list_all(self, path: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Page by page: the version of the whole, and objects. Raises: StoreError, Gone where a page came too late."""
        limit, query = PAGE, dict[str, str]()
        while True:
            try:
                found = self._call("GET", f"{path}?{urlencode({'limit': str(limit), **query})}")
            except TooLarge:
                if limit == 1:
                    raise
                limit = max(limit // 8, 1)
                continue
            metadata, items = found.get("metadata") or {}, found.get("items") or []
            yield str(metadata.get("resourceVersion") or ""), items
            if not metadata.get("continue"):
                return
            query["continue"] = metadata["continue"]

    def watch(self, path: str, version: str) -> Watch:
        """Changes after ``version``. Raises: StoreError, Gone."""
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(random.randint(WATCH_SECONDS * 3 // 4, WATCH_SECONDS)),  # noqa: S311 — no secret
        }
        response = self._open("GET", f"{path}?{urlencode(query)}")
        connection = getattr(response.connection, "sock", None)
        if connection is not None:  # the head comes at once, the first event need not
            connection.settimeout(WATCH_READ_SECONDS)
        return Watch(response, self.translated)

    def reconnect(self) -> None:
        """Take none of the connections that there are for a next call."""
        with self._lock:
            self.close()
            self._pool = None

    def close(self) -> None:
        """Close the connections that wait for a next call."""
        if self._pool is not None:
            self._pool.clear()

    def _connected(self) -> tuple[Access, urllib3.PoolManager]:
        """The access as it is now, and connections by it. Raises: InvalidConfig."""
        with self._lock:
            if not self._access.is_current():
                self.close()
                self._pool = None
                self._access = self._find()
            if self._pool is None:
                self._pool = self._new_pool(self._access)
            return self._access, self._pool

    def _new_pool(self, access: Access) -> urllib3.PoolManager:
        """Raises: InvalidConfig."""
        more: dict[str, Any] = {}
        if access.has_tls:
            more["ssl_context"] = access.tls()
            if access.server_name:
                more |= {"server_hostname": access.server_name, "assert_hostname": access.server_name}
        pool: urllib3.PoolManager = self._urllib3.PoolManager(retries=False, socket_options=KEEPALIVE, **more)
        return pool

    def _call(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Raises: StoreError."""
        response = self._open(method, path, body, headers)
        with self.translated():
            try:
                return _object(self._body(response))
            finally:
                response.release_conn()

    def _body(self, response: urllib3.BaseHTTPResponse) -> bytes:
        """Raises: TooLarge."""
        body = b""
        while len(body) <= MAX_BYTES and (block := response.read(MAX_BYTES + 1 - len(body))):
            body += block
        if len(body) > MAX_BYTES:
            response.close()
            raise TooLarge(f"{self} responds with more than {MAX_BYTES >> 20} MiB")
        return body

    def _open(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """Send, and read the head of the answer. Raises: StoreError."""
        timeout = self._urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS)
        with self.translated():
            access, pool = self._connected()
            sent = {"Accept": "application/json", "User-Agent": USER_AGENT} | dict(headers or {}) | access.headers()
            response: urllib3.BaseHTTPResponse = pool.request(
                method,
                access.server + path,
                body=body,
                headers=sent,
                timeout=timeout,
                redirect=False,  # the token is for this server alone
                preload_content=False,
            )
            if response.status not in (200, 201):
                self._refuse(method, path, response)
        return response

    def _refuse(self, method: str, path: str, response: urllib3.BaseHTTPResponse) -> None:
        """Raises: StoreError, always."""
        try:
            words = _message(response.read(65536))
        finally:
            response.close()
        what = f"{self} responds to {method} {path.partition('?')[0]} with {response.status}: {words}"
        if response.status == 401:
            self._access.refuse()
            hint = "the token or the client certificate is not accepted: has it expired?"
            raise Refused(what, self._access.fault() or hint)
        if response.status == 403:
            hint = "its ClusterRole: get, list and watch nodes; patch nodes/status; without NODE_NAME also get pods"
            raise Refused(what, hint)
        if response.status == 404:
            raise NotFound(what)
        if response.status == 410:
            raise Gone(what)
        if response.status in (409, 429) or response.status >= 500:
            raise Unavailable(what)
        raise Refused(what)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """urllib3's errors as ours, and those of files that were replaced."""
        errors = self._urllib3.exceptions
        try:
            yield
        except InvalidConfig as error:
            raise Refused(": ".join(filter(None, (error.msg, error.details))), error.hint) from error
        except errors.SSLError as error:
            self._access.refuse()
            hint = "see certificate-authority, and whether a certificate expired"
            raise Refused(f"no TLS with {self}: {error}", self._access.fault() or hint) from error
        except (errors.HTTPError, OSError) as error:
            raise Unavailable(f"{self} does not answer: {_reason(error)}", self._access.fault()) from error
        except ValueError as error:
            raise Unavailable(f"{self} responds with what is no JSON: {error}") from error


class Watch:
    """The events of a watch until the server ends it, or :meth:`shut` does. As a context manager it is closed at the end."""

    def __init__(self, response: urllib3.BaseHTTPResponse, translated: Callable[[], AbstractContextManager[None]]) -> None:
        self._response, self._translated = response, translated

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()

    def __iter__(self) -> Iterator[Event]:
        """A last line that is not whole says nothing: its change comes again. Raises: StoreError, Gone."""
        with self._translated():
            rest = b""
            for block in self._response.stream(65536):
                *lines, rest = (rest + block).split(b"\n")
                if len(rest) > MAX_LINE_BYTES:
                    raise ValueError(f"a line is longer than {MAX_LINE_BYTES} bytes")
                yield from (_event(line) for line in lines if line.strip())

    def shut(self) -> None:
        """End it from another thread: its reader comes to the end."""
        # urllib3 looks without a lock: its reader may come to the end, and close the socket, before and beside each step.
        with suppress(ValueError, RuntimeError, TypeError, OSError):
            self._response.shutdown()


def path_of(*parts: str) -> str:
    """A path of the core group, its parts quoted."""
    return "/api/v1/" + "/".join(quote(part, safe="") for part in parts)


def _event(line: bytes) -> Event:
    """Raises: ValueError, StoreError."""
    found = _object(line)
    kind, item = found.get("type"), found.get("object")
    if not isinstance(kind, str) or not isinstance(item, dict):
        raise ValueError("an event without type and object")  # noqa: TRY004 — what is wrong is a text
    if kind == "ERROR":
        words = f"the watch ended: {item.get('message') or item.get('reason') or item}"
        raise (Gone if item.get("code") == 410 else Unavailable)(words)
    return Event(kind, item)


def _object(text: bytes) -> dict[str, Any]:
    """Raises: ValueError."""
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("no object")  # noqa: TRY004 — what is wrong is a text
    return found


def _message(text: bytes) -> str:
    """Return what the Status object says, or the begin of something else."""
    try:
        return str(_object(text).get("message") or "no message")
    except ValueError:
        return text[:200].decode(errors="replace").strip() or "no message"


def _reason(error: Exception) -> str:
    """Return it without the address of an object in memory."""
    reason = str(getattr(error, "reason", None) or error)
    return reason.rpartition("object at 0x")[2].partition(": ")[2] or reason if "object at 0x" in reason else reason
