"""The Container Runtime Interface, as kubelet speaks it: unary gRPC calls over containerd's socket.

    cri = Cri("/run/containerd/containerd.sock")
    sandbox = cri.call("RunPodSandbox", config={"metadata": {"name": "web", "uid": "1", "namespace": "default"}})

There is no crictl in Debian, and grpcio starts threads that a test which forks must not have. One call is one connection
here, so that calls from several threads share nothing. A message is a dict; `MESSAGES` has the fields of runtime/v1
(https://github.com/kubernetes/cri-api, api.proto) that the tests use, and an answer's other fields are skipped.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.events

SERVICE = "/runtime.v1.RuntimeService/"
TEXT, NUMBER = "text", "number"
ENTRY = {"key": (1, TEXT), "value": (2, TEXT)}
METADATA = {"name": (1, TEXT), "uid": (2, TEXT), "namespace": (3, TEXT), "attempt": (4, NUMBER)}
PORT = {"protocol": (1, NUMBER), "container_port": (2, NUMBER), "host_port": (3, NUMBER), "host_ip": (4, TEXT)}
CONFIG = {
    "metadata": (1, METADATA),
    "hostname": (2, TEXT),
    "log_directory": (3, TEXT),
    "port_mappings": (5, [PORT]),
    "linux": (8, {"cgroup_parent": (1, TEXT), "security_context": (2, {"namespace_options": (1, {"network": (1, NUMBER)})})}),
}
NETWORK = {"ip": (1, TEXT), "additional_ips": (2, [{"ip": (1, TEXT)}])}
SANDBOX = {"id": (1, TEXT), "metadata": (2, METADATA), "state": (3, NUMBER), "network": (5, NETWORK)}
CONDITION = {"type": (1, TEXT), "status": (2, NUMBER), "reason": (3, TEXT), "message": (4, TEXT)}
BY_ID = {"pod_sandbox_id": (1, TEXT)}

# call: (fields of the request, fields of the answer); a field: (number, type), a list for a repeated one
Fields = dict[str, tuple[int, Any]]
MESSAGES: dict[str, tuple[Fields, Fields]] = {
    "Status": ({"verbose": (1, NUMBER)}, {"status": (1, {"conditions": (1, [CONDITION])}), "info": (2, [ENTRY])}),
    "RunPodSandbox": ({"config": (1, CONFIG), "runtime_handler": (2, TEXT)}, BY_ID),
    "PodSandboxStatus": ({**BY_ID, "verbose": (2, NUMBER)}, {"status": (1, SANDBOX), "info": (2, [ENTRY])}),
    "ListPodSandbox": ({}, {"items": (1, [{"id": (1, TEXT), "metadata": (2, METADATA), "state": (3, NUMBER)}])}),
    "StopPodSandbox": (BY_ID, {}),
    "RemovePodSandbox": (BY_ID, {}),
}


class CriError(Exception):
    """The runtime answered with an error; the text is its own."""


class Cri:
    def __init__(self, path: str) -> None:
        self.path = path

    def call(self, method: str, **request: Any) -> dict[str, Any]:
        """Make one call; raises CriError with the runtime's words, OSError if no server listens."""
        wanted, answered = MESSAGES[method]
        return decode(unary(self.path, SERVICE + method, encode(wanted, request)), answered)


# --- protobuf ---------------------------------------------------------------------------------------------------------


def encode(fields: Fields, message: dict[str, Any]) -> bytes:
    data = b""
    for name, value in message.items():
        number, kind = fields[name]
        repeated = isinstance(kind, list)
        for item in value if repeated else [value]:
            data += _encode_field(number, kind[0] if repeated else kind, item)
    return data


def _encode_field(number: int, kind: Any, value: Any) -> bytes:
    if kind == NUMBER:
        return _varint(number << 3) + _varint(int(value))
    data = value.encode() if kind == TEXT else encode(kind, value)
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    data = b""
    while value > 0x7F:
        data += bytes([value & 0x7F | 0x80])
        value >>= 7
    return data + bytes([value])


def decode(data: bytes, fields: Fields) -> dict[str, Any]:
    """Every field is there, an absent one with its default, as in protobuf 3."""
    by_number = {number: (name, kind) for name, (number, kind) in fields.items()}
    message: dict[str, Any] = {name: _default(kind) for name, (_, kind) in fields.items()}
    for number, value in _read_fields(data):
        if number not in by_number:
            continue
        name, kind = by_number[number]
        if isinstance(kind, list):
            message[name].append(_decode_value(value, kind[0]))
        else:
            message[name] = _decode_value(value, kind)
    return message


def _default(kind: Any) -> Any:
    return {TEXT: "", NUMBER: 0}[kind] if isinstance(kind, str) else [] if isinstance(kind, list) else {}


def _decode_value(value: int | bytes, kind: Any) -> Any:
    if isinstance(value, int):
        return value
    return value.decode() if kind == TEXT else decode(value, kind)


def _read_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        elif key & 7 == 2:
            size = varint()
            yield key >> 3, data[at : at + size]
            at += size
        else:
            raise ValueError(f"wire type {key & 7}, which no message of this interface has")


# --- gRPC over HTTP/2 -------------------------------------------------------------------------------------------------


def unary(path: str, method: str, request: bytes, timeout_seconds: float = 50) -> bytes:
    """Send one message, receive one; five bytes before each: not compressed, length."""
    http = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    http.initiate_connection()
    stream = http.get_next_available_stream_id()
    headers = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "localhost"}
    http.send_headers(stream, list((headers | {"content-type": "application/grpc", "te": "trailers"}).items()))
    http.send_data(stream, struct.pack(">BI", 0, len(request)) + request, end_stream=True)
    body, trailers = b"", {}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_seconds)
        connection.connect(path)
        while "grpc-status" not in trailers:
            connection.sendall(http.data_to_send())
            received = connection.recv(65536)
            if not received:
                raise CriError(f"{method}: containerd closed the connection")
            for event in http.receive_data(received):
                if isinstance(event, h2.events.DataReceived):
                    body += event.data
                    http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                    trailers |= dict(event.headers)
                elif isinstance(event, h2.events.StreamReset):
                    raise CriError(f"{method}: stream reset, code {event.error_code}")
    if trailers["grpc-status"] != "0":
        raise CriError(unquote(trailers.get("grpc-message", "")) or f"gRPC status {trailers['grpc-status']}")
    return body[5:]
