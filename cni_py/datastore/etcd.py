"""Client of etcd's v3 API, as far as flanneld needs it. The only module that imports etcd3 (cslab-etcd3) and grpc.

How it works: a gRPC channel per endpoint. A call goes to one endpoint until that fails, then to the
next, ``timeout_seconds`` at each; after one round the caller gets :class:`Unavailable`, waits and
comes again. Pings end a watch whose server hangs, within 15 s, and a member without a leader says
so. A token that etcd no longer takes is requested again. gRPC keeps the certificates that a channel was
made with; so where a call or a watch fails and the TLS files have been replaced, all channels are
re-created. Safe for several threads.

A call whose answer was lost is sent to the next endpoint, so it may run twice, or late. Written for
that: :meth:`Etcd.create`, :meth:`Etcd.replace`, and keys with a lease, which a late call cannot bring back.

Of etcd3 only the generated messages are used. Its client marks the wrong endpoint as failed when two
threads use it, and its watch stays silent when etcd refuses it (docs/decisions/0008-etcd-client.md).

Source: etcd ``api/etcdserverpb/rpc.proto``; which errors mean "elsewhere" or "log in again":
``client/v3/retry_interceptor.go``; what is asked: flannel ``pkg/subnet/etcd/registry.go``.
"""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # before the import; else each failure is on standard error twice

import grpc
import grpc.experimental
from etcd3 import etcdrpc as rpc

from cni_py import files
from cni_py.datastore import tls as certificates
from cni_py.datastore.plaintext import warning_about
from cni_py.errors import CniError, InvalidConfig
from cni_py.journal import quote
from cni_py.node import log as klog

MAX_MESSAGE = 16 << 20
"""Bytes of a message from etcd, which by default takes values of 1.5 MiB. A larger page is asked for in parts."""
MAX_TOTAL = 256 << 20
"""Bytes of all keys and values below a prefix: more than a million leases."""
OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),  # etcd hangs up on a client that pings oftener than every 5 s
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # grpcio 1.85 follows this one, by default 60 s, not the one above
    ("grpc.http2.max_pings_without_data", 0),  # no limit; by default an idle watch is pinged twice and no more
    ("grpc.min_reconnect_backoff_ms", 2_000),  # this long may one connect take
    ("grpc.max_reconnect_backoff_ms", 2_000),  # by default a server that is back is found after up to 2 minutes
    ("grpc.max_receive_message_length", MAX_MESSAGE),  # by default 4 MiB
    ("grpc.enable_http_proxy", 0),  # as etcd's own client
    ("grpc.use_local_subchannel_pool", 1),  # by default a new channel takes over the connection that another one left
    (grpc.experimental.ChannelOptions.SingleThreadedUnaryStream, 1),  # for the watch, see open_member()
)
PAGE = 500
"""Keys in an answer."""
NEEDS_LEADER = ("hasleader", "true")  # a member that lost the others says "no leader" instead of waiting for one
Send = Callable[["Member", dict[str, Any]], Any]  # makes one call to a member, with this timeout and metadata


class EtcdError(CniError):
    """etcd refused, and would again."""


class Unavailable(EtcdError):
    """No endpoint answered, or the watch broke: come again later."""


class LeaseGone(EtcdError):
    """The lease has expired or was revoked."""


class TokenRefused(EtcdError):
    """The token has expired, its server was restarted, or the user's rights were changed."""


class TooLarge(EtcdError):
    """A message has more than ``MAX_MESSAGE`` bytes."""


class Compacted(EtcdError):
    """The history does not reach back to the wanted revision: read the prefix again and watch from there."""

    def __init__(self, revision: int, details: str) -> None:
        """``revision`` 0: etcd does not say where its history begins."""
        super().__init__(f"etcd's history begins at revision {revision}", details)
        self.revision = revision


CODE = grpc.StatusCode
BROKEN = (CODE.INTERNAL, CODE.CANCELLED, CODE.UNKNOWN)  # a stream reset, a channel closed, an error of raft itself
ELSEWHERE = (CODE.UNAVAILABLE, CODE.DEADLINE_EXCEEDED, CODE.RESOURCE_EXHAUSTED, *BROKEN)
OLD_TOKEN = "etcdserver: revision of auth store is old"  # noqa: S105 — INVALID_ARGUMENT, where tokens are JWT


class KeyValue(NamedTuple):
    """A key as it was read, or as a watch reports it. ``lease`` 0: it does not expire."""

    key: str
    value: bytes
    lease: int
    create_revision: int
    mod_revision: int

    @property
    def is_deleted(self) -> bool:
        """Deleted or expired: a watch reports it so, with ``key`` and ``mod_revision`` alone."""
        return self.create_revision == 0


class Member(NamedTuple):
    """An endpoint, its channel, and the services there."""

    endpoint: str
    channel: Any
    kv: Any
    lease: Any
    watch: Any
    auth: Any


class Etcd:
    """A client of one cluster. Connects with the first call.

    Args:
        endpoints: ``http://host:port``, ``https://host:port``; ``host:port``: TLS if a TLS file is given.
        ca_path, cert_path, key_path: PEM files, read now, and again when they were replaced; without a CA, gRPC's
            own list of public ones.
        user, password: both or neither.
        timeout_seconds: for one call at one endpoint.

    Raises: InvalidConfig.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        ca_path: str = "",
        cert_path: str = "",
        key_path: str = "",
        user: str = "",
        password: str = "",
        timeout_seconds: float = 5.0,
    ) -> None:
        if not endpoints or bool(user) != bool(password):
            raise InvalidConfig("etcd needs endpoints, and both user and password or neither")
        self._tls = TlsFiles(ca_path, cert_path, key_path)
        self._members = open_members(endpoints, self._tls)
        self._member = self._members[0]
        self._lock = threading.Lock()
        self._user, self._password, self._token = user, password, ""
        self._timeout_seconds = timeout_seconds
        given = [name for name, is_given in (("the password", user), ("the TLS files", self._tls)) if is_given]
        for endpoint in endpoints:
            if not is_encrypted(endpoint, bool(self._tls)) and (text := warning_about(endpoint, given)):
                klog.warning(text)

    def reconnect(self) -> None:
        """Open new channels: the present ones may be of an address that the node no longer has."""
        with self._lock:
            following = self._members.index(self._member)
            self._open_again()
            self._member = self._members[following]

    def close(self) -> None:
        """End the calls and watches in progress, whatever thread they are in: they raise Unavailable."""
        for member in self._members:
            member.channel.close()

    # ---- keys -----------------------------------------------------------------------------------

    def get(self, key: str) -> KeyValue | None:
        """``None`` where there is no such key. Raises: EtcdError."""
        request = rpc.RangeRequest(key=encode(key))
        found = self._range(request).kvs
        return key_value(found[0]) if found else None

    def _range(self, request: Any) -> Any:
        return self._ask(lambda member, how: member.kv.Range(request, **how))

    def pages(self, prefix: str) -> Iterator[tuple[list[KeyValue], int]]:
        """The keys below, sorted, some at a time, and the revision that all are of: watch from the next one on.

        A key whose value is larger than a message is left out, with a warning.

        Raises: Compacted where the history of that revision was dropped meanwhile; TooLarge; EtcdError.
        """
        first, end, revision, size, limit = encode(prefix), end_of(prefix), 0, 0, PAGE
        while True:
            try:
                response = self._range(rpc.RangeRequest(key=first, range_end=end, limit=limit, revision=revision))
                kvs = response.kvs
            except TooLarge:
                if limit > 1:
                    limit = max(limit // 8, 1)
                    continue
                response = self._range(rpc.RangeRequest(key=first, range_end=end, limit=1, revision=revision, keys_only=True))
                name = response.kvs[0].key.decode(errors="replace")
                klog.warning(f'"{klog.shortened(name, 256)}" in etcd is too large: ignored')
                kvs = []
            size += response.ByteSize()
            if size > MAX_TOTAL:
                hint = f"delete keys that do not belong there; see: {self.command('get', '--prefix', '--keys-only', prefix)}"
                raise TooLarge(f"etcd has more than {MAX_TOTAL >> 20} MiB below {prefix}", hint=hint)
            revision = revision or int(response.header.revision)
            yield [key_value(kv) for kv in kvs], revision
            if not response.more:
                return
            first = response.kvs[-1].key + b"\0"

    def put(self, key: str, value: bytes, lease: int = 0) -> None:
        """Raises: LeaseGone; EtcdError."""
        request = rpc.PutRequest(key=encode(key), value=value, lease=lease)
        self._ask(lambda member, how: member.kv.Put(request, **how))

    def create(self, key: str, value: bytes, lease: int = 0, *, none_newer: tuple[str, int] | None = None) -> bool:
        """Put the key if it does not exist. Returns: whether it is ours, also if it exists with this very lease and
        value, for then an earlier try made it and the answer was lost.

        ``none_newer``: a prefix and the revision that it was read at; then only if no key was created there since.

        Raises: LeaseGone; EtcdError.
        """
        conditions = [rpc.Compare(key=encode(key), target=rpc.Compare.CREATE, create_revision=0)]
        if none_newer:
            prefix, revision = none_newer
            conditions.append(
                rpc.Compare(
                    key=encode(prefix),
                    range_end=end_of(prefix),
                    target=rpc.Compare.CREATE,
                    result=rpc.Compare.LESS,
                    create_revision=revision + 1,
                )
            )
        return self._put_if(conditions, key, value, lease)

    def replace(self, key: str, value: bytes, mod_revision: int, lease: int = 0) -> bool:
        """Put the key if its last change is still that of ``mod_revision``; else as :meth:`create`."""
        condition = rpc.Compare(key=encode(key), target=rpc.Compare.MOD, mod_revision=mod_revision)
        return self._put_if([condition], key, value, lease)

    def _put_if(self, conditions: list[Any], key: str, value: bytes, lease: int) -> bool:
        put = rpc.RequestOp(request_put=rpc.PutRequest(key=encode(key), value=value, lease=lease))
        look = rpc.RequestOp(request_range=rpc.RangeRequest(key=encode(key)))
        request = rpc.TxnRequest(compare=conditions, success=[put], failure=[look])
        response = self._ask(lambda member, how: member.kv.Txn(request, **how))
        if response.succeeded:
            return True
        found = response.responses[0].response_range.kvs
        return bool(lease and found and (found[0].lease, found[0].value) == (lease, value))

    def delete(self, key: str) -> None:
        """Absence is success. Raises: EtcdError."""
        request = rpc.DeleteRangeRequest(key=encode(key))
        self._ask(lambda member, how: member.kv.DeleteRange(request, **how))

    # ---- leases ---------------------------------------------------------------------------------

    def grant(self, seconds: int) -> int:
        """The id of a new lease; one whose answer was lost expires unused. Raises: EtcdError."""
        request = rpc.LeaseGrantRequest(TTL=seconds)
        return int(self._ask(lambda member, how: member.lease.LeaseGrant(request, **how)).ID)

    def revoke(self, lease: int) -> None:
        """End it and delete its keys; absence is success. Raises: EtcdError."""
        request = rpc.LeaseRevokeRequest(ID=lease)
        try:
            self._ask(lambda member, how: member.lease.LeaseRevoke(request, **how))
        except LeaseGone:
            pass

    def keep_alive_once(self, lease: int) -> int:
        """Restart its time. Returns: the seconds that it has left; 0: it was deleted. Raises: EtcdError."""
        request = rpc.LeaseKeepAliveRequest(ID=lease)
        responses = self._ask(lambda member, how: list(member.lease.LeaseKeepAlive(iter([request]), **how)))
        return int(responses[0].TTL) if responses else 0

    def seconds_left(self, lease: int) -> int:
        """Return when it ends, without renewing it; 0: it no longer exists. Raises: EtcdError."""
        request = rpc.LeaseTimeToLiveRequest(ID=lease)
        try:
            return max(int(self._ask(lambda member, how: member.lease.LeaseTimeToLive(request, **how)).TTL), 0)
        except LeaseGone:
            return 0

    # ---- watching -------------------------------------------------------------------------------

    @contextmanager
    def watch(self, prefix: str, from_revision: int) -> Iterator[Watch]:
        """Every change below ``prefix`` from this revision on, while the block lasts.

        If it breaks, watch again from the last ``mod_revision`` that was seen, plus one. (Not from the
        header's revision, as flannel does: while etcd catches up, that one is ahead of what it has sent.)

        Raises: Unavailable, and the next watch begins at the next endpoint; EtcdError.
        """
        member = self._member
        create = rpc.WatchCreateRequest(key=encode(prefix), range_end=end_of(prefix), start_revision=from_revision)
        self._token = ""  # where it does not take the token, etcd says "permission denied" to a watch
        try:
            with translated(member):
                metadata = self._metadata(member)
                watch = Watch(member, rpc.WatchRequest(create_request=create), metadata, from_revision)
            try:
                yield watch
            finally:
                watch.cancel()
        except Unavailable as error:
            self._leave(member)
            error.hint = self._tls.fault()
            raise

    # ---- asking ---------------------------------------------------------------------------------

    def _ask(self, send: Send) -> Any:
        """The answer of the first endpoint that gives one. Raises: Unavailable; LeaseGone; EtcdError."""
        failures = []
        for _ in self._members:
            member = self._member
            try:
                try:
                    return self._send(member, send)
                except TokenRefused:
                    self._token = ""
                    return self._send(member, send)
            except Unavailable as error:
                failures.append(str(error))
                self._leave(member)
        hint = self._tls.fault() or self._tls_reason(failures) or f"see its state: {self.command('endpoint', 'health')}"
        raise Unavailable("etcd cannot be used", "; ".join(failures), hint)

    def _tls_reason(self, failures: Sequence[str]) -> str:
        """Return why TLS fails at an endpoint that responds; gRPC's words do not say."""
        if any(word in failure for failure in failures for word in ("DEADLINE", "refused", "unreachable")):
            return ""
        reasons = (self._tls.reason_at(member.endpoint) for member in self._members)
        return next(filter(None, reasons), "")

    def command(self, *words: str) -> str:
        """Return the command of etcdctl that a person types for the same cluster; it asks for a password."""
        options = [f"--endpoints={','.join(member.endpoint for member in self._members)}", *self._tls.etcdctl_options()]
        options += [f"--user={self._user}"] if self._user else []
        return " ".join(["ETCDCTL_API=3", "etcdctl", *map(quote, (*options, *words))])

    def _send(self, member: Member, send: Send) -> Any:
        with translated(member):
            return send(member, {"timeout": self._timeout_seconds, "metadata": self._metadata(member)})

    def _metadata(self, member: Member) -> tuple[tuple[str, str], ...]:
        """Return what goes with every call. The token too: gRPC's own way for it, call credentials, works over TLS only."""
        if not self._user:
            return (NEEDS_LEADER,)
        token = self._token  # once: another thread may empty it
        if not token:
            request = rpc.AuthenticateRequest(name=self._user, password=self._password)
            response = member.auth.Authenticate(request, timeout=self._timeout_seconds, metadata=(NEEDS_LEADER,))
            token = self._token = str(response.token)
        return (NEEDS_LEADER, ("token", token))

    def _leave(self, member: Member) -> None:
        """Go on with the endpoint after this one, unless another thread has already left it."""
        with self._lock:
            if self._member is member:
                following = (self._members.index(member) + 1) % len(self._members)
                if self._tls.has_changed() and self._open_again():
                    klog.info("the TLS files for etcd were replaced: connecting with the new ones")
                self._member = self._members[following]

    def _open_again(self) -> bool:
        """Open them with the present TLS files. Where these cannot be used, one may not exist yet: it is tried again."""
        former = self._members
        try:
            self._members = open_members([member.endpoint for member in former], self._tls)
        except InvalidConfig:  # fault() says why
            return False
        for member in former:
            member.channel.close()
        return True


class Watch:
    """A watch in progress, to be iterated over once."""

    def __init__(self, member: Member, request: Any, metadata: Any, from_revision: int) -> None:
        self._member, self._from_revision = member, from_revision
        self._responses = member.watch(request, metadata=metadata)

    def __iter__(self) -> Iterator[list[KeyValue]]:
        """Yield the changes in order, those of one revision together; first an empty list: etcd has the watch.

        It does not end but by raising: Unavailable, after :meth:`cancel` too; Compacted; EtcdError.
        """
        with translated(self._member):
            for response in self._responses:
                check_watch(response, self._from_revision)
                yield [key_value(event.kv) for event in response.events]
        raise Unavailable(f'etcd at "{self._member.endpoint}" ended the watch')

    def cancel(self) -> None:
        """End it, from any thread. Twice is fine."""
        self._responses.cancel()


@contextmanager
def translated(member: Member) -> Iterator[None]:
    """gRPC's exceptions as this module's."""
    try:
        yield
    except grpc.RpcError as error:
        code, details = error.code(), error.details() or ""
        kind = EtcdError
        if code is CODE.RESOURCE_EXHAUSTED and "larger than max" in details:
            kind = TooLarge
        elif code in ELSEWHERE:
            kind = Unavailable
        elif code is CODE.NOT_FOUND:
            kind = LeaseGone
        elif code is CODE.OUT_OF_RANGE:
            raise Compacted(0, details) from error
        elif code is CODE.UNAUTHENTICATED or details == OLD_TOKEN:
            kind = TokenRefused
        raise kind(f'etcd at "{member.endpoint}"', f"{details} ({code.name})") from error
    except ValueError as error:  # another thread has closed the channel
        raise Unavailable(f'etcd at "{member.endpoint}"', str(error)) from error


def check_watch(response: Any, from_revision: int) -> None:
    """A refusal comes as an answer like any other. Raises: Compacted; EtcdError."""
    if response.compact_revision:
        raise Compacted(response.compact_revision, response.cancel_reason)
    if response.canceled:
        raise EtcdError("etcd refuses the watch", response.cancel_reason)
    if response.created and response.header.revision + 1 < from_revision:  # restored from a backup; it would just wait
        raise Compacted(response.header.revision, f"it has not reached {from_revision}")


class TlsFiles:
    """The PEM files of a connection; each may be "" for none."""

    def __init__(self, ca_path: str, cert_path: str, key_path: str) -> None:
        self._ca_path, self._cert_path, self._key_path = ca_path, cert_path, key_path
        self._paths = [path for path in (ca_path, cert_path, key_path) if path]
        self._stamp: certificates.Stamp = ()
        self._unusable = ""

    def __bool__(self) -> bool:
        return bool(self._paths)

    def has_changed(self) -> bool:
        """Return whether they changed since they were read, with success or without."""
        return certificates.stamp(self._paths) != self._stamp

    def read(self) -> Any:
        """gRPC's credentials. OpenSSL tries the files first: gRPC takes a bad file for an outage. Raises: InvalidConfig."""
        self._stamp = certificates.stamp(self._paths)
        ca_path, cert_path, key_path = self._ca_path, self._cert_path, self._key_path
        trial = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            with _named("CA certificate", ca_path):
                ca = files.read(ca_path) if ca_path else None
                if ca_path:
                    trial.load_verify_locations(ca_path)
            with _named("client certificate", cert_path):
                cert = files.read(cert_path) if cert_path else None
                if cert_path:
                    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cert_path)
            with _named("key", key_path, cert_path):
                key = files.read(key_path) if key_path else None
                if cert_path or key_path:
                    trial.load_cert_chain(cert_path, key_path, password="")
        except InvalidConfig as error:
            self._unusable = str(error)
            raise
        self._unusable = ""
        return grpc.ssl_channel_credentials(ca, key, cert)

    def reason_at(self, endpoint: str) -> str:
        """Return why TLS with this endpoint fails, and which option to set; "" if it does not."""
        from cni_py.datastore import tls_probe

        scheme, separator, _ = endpoint.rpartition("://")
        is_tls = scheme == "https" or (not separator and bool(self))
        return tls_probe.reason(endpoint, self._ca_path, self._cert_path, self._key_path, is_tls=is_tls)

    def etcdctl_options(self) -> list[str]:
        """Return the same files as options of etcdctl."""
        named = {"cacert": self._ca_path, "cert": self._cert_path, "key": self._key_path}
        return [f"--{option}={path}" for option, path in named.items() if path]

    def fault(self) -> str:
        """Return why no connection can be made with the present files, as far as they say; else ""."""
        return self._unusable or certificates.what_is_invalid(
            (self._cert_path, _content(self._cert_path)), (self._ca_path, _content(self._ca_path))
        )


@contextmanager
def _named(what: str, path: str, certificate: str = "") -> Iterator[None]:
    """Describe what is wrong with a TLS file. ``certificate``: that of a key. Raises: InvalidConfig."""
    try:
        yield
    except (OSError, CniError) as error:
        words = str(error)
        if isinstance(error, ssl.SSLError):
            is_other = error.reason == "KEY_VALUES_MISMATCH"
            words = (
                f'it does not belong to the certificate "{certificate}"' if is_other else f"it is no PEM file of one: {words}"
            )
        elif isinstance(error, OSError):
            words = error.strerror or words
        raise InvalidConfig(f'etcd\'s TLS files cannot be used: the {what} "{path}"', words) from error


def _content(path: str) -> bytes:
    """Nothing where it cannot be read."""
    try:
        return files.read(path) if path else b""
    except (OSError, CniError):
        return b""


def open_members(endpoints: Sequence[str], tls: TlsFiles) -> list[Member]:
    """Raises: InvalidConfig."""
    credentials = tls.read()
    return [open_member(endpoint, credentials, bool(tls)) for endpoint in endpoints]


def is_encrypted(endpoint: str, has_tls: bool) -> bool:
    """Return whether the connection uses TLS: the scheme decides, as in etcd ``client/v3/internal/endpoint``."""
    scheme, separator, _ = endpoint.rpartition("://")
    return scheme == "https" or (not separator and has_tls)


def open_member(endpoint: str, credentials: Any, has_tls: bool) -> Member:
    """Raises: InvalidConfig."""
    scheme, _, address = endpoint.rstrip("/").rpartition("://")
    if is_encrypted(endpoint, has_tls):
        channel = grpc.secure_channel(address, credentials, OPTIONS)
    elif scheme in ("http", ""):
        channel = grpc.insecure_channel(address, OPTIONS)
    else:
        raise InvalidConfig(f'"{endpoint}" is no endpoint of etcd', hint="write http://host:port or https://host:port")
    # As a call with one request, whose messages are read by the thread that waits for them: otherwise each would pass through
    # another thread, and the one that waits would look ten times a second. etcd goes on after the end of the requests.
    watch = channel.unary_stream(
        "/etcdserverpb.Watch/Watch",
        request_serializer=rpc.WatchRequest.SerializeToString,
        response_deserializer=rpc.WatchResponse.FromString,
    )
    return Member(endpoint, channel, rpc.KVStub(channel), rpc.LeaseStub(channel), watch, rpc.AuthStub(channel))


def key_value(kv: Any) -> KeyValue:
    return KeyValue(kv.key.decode(errors="surrogateescape"), kv.value, kv.lease, kv.create_revision, kv.mod_revision)


def encode(key: str) -> bytes:
    return key.encode(errors="surrogateescape")


def end_of(prefix: str) -> bytes:
    """The first key after all that begin with ``prefix``."""
    shorter = encode(prefix).rstrip(b"\xff")
    return shorter[:-1] + bytes([shorter[-1] + 1]) if shorter else b"\0"
