"""The Kubernetes API as the tests use it: JSON over HTTPS as administrator; exec and logs of pods."""

from __future__ import annotations

import asyncio
import json
import ssl
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.e2e.cluster.processes import ClusterError

if TYPE_CHECKING:
    from tests.e2e.cluster.pki import Authority, Identity

Object = dict[str, Any]
STDOUT, STDERR, ERROR = 1, 2, 3  # channels of v4.channel.k8s.io


@dataclass(frozen=True, slots=True)
class Answer:
    """How a command in a pod ended."""

    exit_code: int
    output: str
    messages: str


class Api:
    """A synchronous client for one cluster."""

    def __init__(self, server: str, authority: Authority, identity: Identity) -> None:
        self.server = server
        self._tls = ssl.create_default_context(cafile=str(authority.certificate))
        self._tls.load_cert_chain(identity.certificate, identity.key)
        # No proxy of the environment: the server is in this namespace.
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self._tls)
        )

    def text(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        kind: str = "application/json",
        timeout: float = 10,
    ) -> str:
        """Sends one request.

        Raises:
            ClusterError: the server refuses; with its message.
            OSError: it cannot be reached.
        """
        request = urllib.request.Request(
            self.server + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": kind, "Accept": "*/*"},
        )
        try:
            with self._opener.open(request, timeout=timeout) as response:
                return str(response.read().decode(errors="replace"))
        except urllib.error.HTTPError as error:
            with error:
                message = error.read().decode(errors="replace")
            raise ClusterError(f"{method} {path}: {error.code} {message}") from error

    def request(self, method: str, path: str, body: Object | None = None, **options: Any) -> Object:
        answer: Object = json.loads(self.text(method, path, body, **options))
        return answer

    def get(self, path: str) -> Object:
        return self.request("GET", path)

    def items(self, path: str) -> list[Object]:
        listed: list[Object] = self.get(path)["items"]
        return listed

    def create(self, path: str, body: Object) -> Object:
        return self.request("POST", path, body)

    def delete(self, path: str, **options: Any) -> None:
        """Deletes an object or a collection; one that is not there is no error."""
        try:
            self.request("DELETE", path, {"apiVersion": "v1", "kind": "DeleteOptions", **options}, timeout=60)
        except ClusterError as error:
            if ": 404 " not in str(error):
                raise

    def ready(self) -> bool:
        return self.text("GET", "/readyz", timeout=2) == "ok"

    def logs(self, pod: str, namespace: str = "default") -> str:
        return self.text("GET", f"/api/v1/namespaces/{namespace}/pods/{pod}/log")

    def execute(self, pod: str, *command: str, namespace: str = "default", timeout: float = 30) -> Answer:
        """Runs a command in a pod's first container, through API server and kubelet.

        Raises:
            ClusterError: the command could not be started.
        """
        return asyncio.run(asyncio.wait_for(self._execute(pod, command, namespace), timeout))

    async def _execute(self, pod: str, command: tuple[str, ...], namespace: str) -> Answer:
        query = urllib.parse.urlencode(
            [("command", word) for word in command] + [("stdout", "1"), ("stderr", "1")]
        )
        url = f"{self.server}/api/v1/namespaces/{namespace}/pods/{pod}/exec?{query}"
        streams = {STDOUT: b"", STDERR: b"", ERROR: b""}
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(url, ssl=self._tls, protocols=("v4.channel.k8s.io",)) as socket,
            ):
                async for message in socket:
                    if message.type == aiohttp.WSMsgType.BINARY and message.data[0] in streams:
                        streams[message.data[0]] += message.data[1:]
        except aiohttp.ClientError as error:
            raise ClusterError(f"exec of {command} in {pod}: {error}") from error
        status = json.loads(streams[ERROR] or b"{}")
        return Answer(
            _exit_code(pod, status),
            streams[STDOUT].decode(errors="replace"),
            streams[STDERR].decode(errors="replace"),
        )


def _exit_code(pod: str, status: Object) -> int:
    if status.get("status") == "Success":
        return 0
    for cause in status.get("details", {}).get("causes", []):
        if cause.get("reason") == "ExitCode":
            return int(cause["message"])
    raise ClusterError(f"exec in {pod} gave no exit code: {status}")
