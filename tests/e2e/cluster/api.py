"""The Kubernetes API as the tests use it: JSON over HTTPS as administrator; exec and logs of pods."""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.error
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

from tests.e2e.cluster import execute
from tests.e2e.cluster.processes import ClusterError

if TYPE_CHECKING:
    from tests.e2e.cluster.pki import Authority, Identity

Object = dict[str, Any]


def condition(object_: Object, name: str) -> Object:
    """A condition of a node or a pod, empty if it has none of that name."""
    found: list[Object] = [c for c in object_.get("status", {}).get("conditions", []) if c["type"] == name]
    return found[0] if found else {}


def is_ready(object_: Object) -> bool:
    return condition(object_, "Ready").get("status") == "True"


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

    def connection(self) -> http.client.HTTPSConnection:
        """A connection to keep, for who writes much or measures: connecting takes longer than writing."""
        server = urllib.parse.urlsplit(self.server)
        assert server.hostname
        return http.client.HTTPSConnection(server.hostname, server.port, timeout=60, context=self._tls)

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

    def execute(
        self, pod: str, *command: str, namespace: str = "default", timeout: float = 30
    ) -> execute.Answer:
        """Runs a command in a pod's first container, through API server and kubelet.

        Raises:
            ClusterError: the command could not be started.
        """
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}"
        return execute.execute(self.server, self._tls, path, command, timeout)
