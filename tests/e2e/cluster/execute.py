"""Commands in pods: the exec call of the Kubernetes API over the reading half of a WebSocket."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import urllib.parse
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from tests.e2e.cluster.processes import ClusterError

if TYPE_CHECKING:
    import ssl

STDOUT, STDERR, STATUS = 1, 2, 3  # the first byte of each message of v4.channel.k8s.io
BINARY, CLOSE = 2, 8  # opcodes, RFC 6455, section 5.2


@dataclass(frozen=True, slots=True)
class Answer:
    """How a command in a pod ended."""

    exit_code: int
    output: str
    messages: str


def execute(server: str, tls: ssl.SSLContext, path: str, command: tuple[str, ...], timeout: float) -> Answer:
    """Runs a command in the first container of the pod at an API path.

    Raises:
        ClusterError: the command could not be started.
        OSError: the API server cannot be reached.
    """
    url = urllib.parse.urlsplit(server)
    assert url.hostname
    assert url.port
    words = [("command", word) for word in command]
    query = urllib.parse.urlencode([*words, ("stdout", "1"), ("stderr", "1")])
    with (
        socket.create_connection((url.hostname, url.port), timeout) as plain,
        tls.wrap_socket(plain, server_hostname=url.hostname) as connection,
        connection.makefile("rb") as stream,
    ):
        connection.sendall(_handshake(url.netloc, f"{path}/exec?{query}"))
        _expect_switch(stream, path)
        channels = {STDOUT: b"", STDERR: b"", STATUS: b""}
        while message := _message(stream):
            if message[0] in channels:
                channels[message[0]] += message[1:]
    return Answer(
        _exit_code(path, json.loads(channels[STATUS] or b"{}")),
        channels[STDOUT].decode(errors="replace"),
        channels[STDERR].decode(errors="replace"),
    )


def _handshake(host: str, target: str) -> bytes:
    key = base64.b64encode(os.urandom(16)).decode()
    lines = (
        f"GET {target} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: v4.channel.k8s.io",
    )
    return "\r\n".join((*lines, "", "")).encode()


def _expect_switch(stream: BinaryIO, path: str) -> None:
    status = stream.readline().decode()
    length = 0
    while line := stream.readline().strip():
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    if " 101 " not in status:
        raise ClusterError(f"exec at {path}: {status.strip()} {stream.read(length).decode(errors='replace')}")


def _message(stream: BinaryIO) -> bytes:
    """The payload of the next binary frame that has one; empty at the end."""
    while len(header := stream.read(2)) == 2:
        opcode, length = header[0] & 0x0F, header[1]
        if length >= 126:
            form = ">H" if length == 126 else ">Q"
            length = struct.unpack(form, stream.read(struct.calcsize(form)))[0]
        payload = stream.read(length)
        if opcode == CLOSE:
            break
        if opcode == BINARY and payload:
            return payload
    return b""


def _exit_code(path: str, status: dict[str, object]) -> int:
    if status.get("status") == "Success":
        return 0
    details = status.get("details")
    for cause in details.get("causes", []) if isinstance(details, dict) else ():
        if cause.get("reason") == "ExitCode":
            return int(cause["message"])
    raise ClusterError(f"exec at {path} gave no exit code: {status}")
