"""Requests to the API server as raw JSON.

Owns TLS, credentials and their renewal; the only user of kubernetes_asyncio.

Credentials are files that others renew: projected service account tokens each hour, kubelet's client
certificate each year. Their identity is compared before each request, and a refused credential (401) is
loaded anew, so that nothing has to be restarted. Failures are two kinds: `ApiError`, an answer of the
server, and `UnreachableError`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.machinery
import importlib.util
import json
import os
import socket
import ssl
import sys
from importlib.abc import Loader
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import aiohttp
import structlog

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
    from types import ModuleType

    from daemon.cluster.endpoint import Endpoint

log = structlog.get_logger()

STRATEGIC_MERGE = "application/strategic-merge-patch+json"

_MAX_LINE = 64 << 20
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))


class _Bare(Loader):
    """Makes a package without running its __init__."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        del spec

    def exec_module(self, module: ModuleType) -> None:
        pass


def _import_client() -> tuple[Any, Any, Any]:
    """Import the parts of kubernetes_asyncio that are needed: kube_config, configuration and rest.

    Its packages import all their contents: 960 modules of models and API classes that cost 38 MiB and a
    quarter of a second, for 2 MiB of use. So the packages are entered into sys.modules as what they are,
    minus the running of their __init__; modules inside are then found and imported as ever.
    `client.Configuration` is the one name that those modules take from a package; `client.ApiClient`, which
    they take for a function not used here, would drag the models in again.
    """
    root = importlib.util.find_spec("kubernetes_asyncio")
    if root is None or not root.submodule_search_locations:
        raise ImportError("kubernetes_asyncio is not installed; run `make install`")
    for name in ("kubernetes_asyncio", "kubernetes_asyncio.client", "kubernetes_asyncio.config"):
        if name not in sys.modules:
            spec = importlib.machinery.ModuleSpec(name, _Bare(), is_package=True)
            inside = name.split(".")[1:]
            spec.submodule_search_locations = [
                os.path.join(place, *inside) for place in root.submodule_search_locations
            ]
            sys.modules[name] = importlib.util.module_from_spec(spec)
    client = sys.modules["kubernetes_asyncio.client"]
    configuration = importlib.import_module("kubernetes_asyncio.client.configuration")
    rest = importlib.import_module("kubernetes_asyncio.client.rest")
    if not hasattr(client, "ApiClient"):
        client.ApiClient = None  # type: ignore[attr-defined]
        client.Configuration = configuration.Configuration  # type: ignore[attr-defined]
    return importlib.import_module("kubernetes_asyncio.config.kube_config"), configuration, rest


_kube_config, _configuration, _rest = _import_client()


class ApiError(Exception):
    """The API server answered with an error.

    Attributes:
        status: the HTTP status.
        reason: of the Status object, e.g. "Expired", empty when there was none.
        retry_after: seconds that the server asks to wait, 0 when it does not.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after: float = 0) -> None:
        self.status = status
        self.reason = reason
        self.retry_after = retry_after
        super().__init__(f"HTTP {status}{f' {reason}' if reason else ''}: {message}")


class UnreachableError(Exception):
    """The API server could not be talked to; the message names it and how it was found.

    Attributes:
        kind: "connect", "timeout", "protocol" or "credentials".
    """

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


class _Client:
    """One session with one set of credentials; closed when it is retired and its last user is done."""

    def __init__(self, configuration: Any, files: tuple[str, ...]) -> None:
        self.rest = _rest.RESTClientObject(configuration)
        self.host = str(configuration.host)
        self.token = str(configuration.api_key.get("BearerToken", ""))
        self.files = files
        self.identity = _identity(files)
        self._users = 0
        self._retired = False

    @contextlib.asynccontextmanager
    async def use(self) -> AsyncIterator[None]:
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            await self._close_if_done()

    async def retire(self) -> None:
        self._retired = True
        await self._close_if_done()

    async def _close_if_done(self) -> None:
        if self._retired and self._users == 0:
            await self.rest.close()


class Connection:
    """Requests to the API server; used by any number of tasks of one loop."""

    def __init__(self, choose: Callable[[], Endpoint], *, scratch: str, connect_timeout: float = 5) -> None:
        """`choose` finds the endpoint each time credentials are loaded; `scratch` is a private directory."""
        self._choose = choose
        self._scratch = scratch
        self._connect_timeout = connect_timeout
        self._client: _Client | None = None
        self._loading = asyncio.Lock()
        self._streams: set[Any] = set()
        self.endpoint: Endpoint | None = None

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str | int] | None = None,
        body: object = None,
        content_type: str = "application/json",
        timeout: float = 30,  # noqa: ASYNC109 - passed to aiohttp, which knows the phases
    ) -> dict[str, Any]:
        """Make one request and return its JSON object.

        Raises:
            ApiError: the server answered with an error status.
            UnreachableError: there was no answer, or one that is no JSON object.
        """
        limits = aiohttp.ClientTimeout(total=timeout, sock_connect=self._connect_timeout)
        async with self._open(method, path, query, body, content_type, limits) as response:
            with self._on_the_way():
                content = await response.read()
        try:
            document = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise UnreachableError("protocol", f"{method} {path}: the answer is no JSON: {error}") from error
        if not isinstance(document, dict):
            raise UnreachableError("protocol", f"{method} {path}: the answer is no JSON object")
        return document

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, query: Mapping[str, str | int], *, idle: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a watch; gives the lines as they come, until the server ends it.

        Nothing at all for `idle` seconds means that the connection is dead: UnreachableError, kind
        "timeout". So does a peer that acknowledges nothing for half a minute (keepalive), whatever `idle`
        is.

        Raises:
            ApiError: the server answered with an error status.
            UnreachableError: connecting failed or the connection broke.
        """
        limits = aiohttp.ClientTimeout(sock_connect=self._connect_timeout, sock_read=idle)
        async with self._open("GET", path, query, None, "application/json", limits) as response:
            _probe_when_idle(response)
            transport = response.connection.transport if response.connection else None
            if transport is not None:
                self._streams.add(transport)
            try:
                yield self._lines(response)
            finally:
                self._streams.discard(transport)

    def forsake(self, addresses: Collection[bytes]) -> None:
        """Break watches that come from one of these addresses of this machine, which went or came.

        Nothing reaches a connection whose own address is gone, and nobody tells it: without this a changed
        Node would be learned of only when keepalive gives up, half a minute later. Whoever watches connects
        anew and misses nothing.
        """
        for transport in tuple(self._streams):
            name = transport.get_extra_info("sockname")
            with contextlib.suppress(ValueError, TypeError, IndexError):
                if ip_address(name[0].partition("%")[0]).packed in addresses:
                    transport.abort()

    async def close(self) -> None:
        """Close all connections."""
        if self._client is not None:
            await self._client.retire()
            self._client = None

    @contextlib.asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int] | None,
        body: object,
        content_type: str,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - see request
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        client = await self._current()
        headers = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": "weftd"}
        if client.token:
            headers["Authorization"] = client.token
        async with client.use():
            with self._on_the_way():
                response: aiohttp.ClientResponse = await client.rest.request(
                    method,
                    client.host + path,
                    query_params=list(query.items()) if query else None,
                    headers=headers,
                    body=body,
                    _preload_content=False,
                    _request_timeout=timeout,
                )
            async with response:
                if response.status >= 300:
                    raise await self._refusal(client, response)
                yield response

    @contextlib.contextmanager
    def _on_the_way(self) -> Iterator[None]:
        """Tell what fails between here and the API server as UnreachableError."""
        try:
            yield
        except TimeoutError as error:
            raise UnreachableError("timeout", f"{self._place()} does not answer in time") from error
        except aiohttp.ClientPayloadError as error:
            raise UnreachableError("protocol", f"{self._place()}: the connection broke: {error}") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise UnreachableError("connect", f"{self._place()} can't be reached: {error}") from error

    async def _refusal(self, client: _Client, response: aiohttp.ClientResponse) -> ApiError:
        with self._on_the_way():
            text = (await response.content.read(64 << 10)).decode(errors="replace")
        reason, message = "", text.strip()[:500] or str(response.reason)
        with contextlib.suppress(ValueError):
            status = json.loads(text)
            if isinstance(status, dict):
                reason = str(status.get("reason") or "")
                message = str(status.get("message") or message)
        if response.status == 401 and self._client is client:
            # The next request loads the credentials anew, also those that no file tells the age of.
            self._client = None
            await client.retire()
        try:
            retry_after = float(response.headers.get("Retry-After", "0"))
        except ValueError:
            retry_after = 0
        return ApiError(response.status, reason, message, max(0, min(retry_after, 60)))

    async def _lines(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """The lines of a response; objects may be larger than any buffer of aiohttp's own line reader."""
        parts: list[bytes] = []
        size = 0
        while True:
            with self._on_the_way():
                chunk = await response.content.readany()
            if not chunk:
                break
            *complete, rest = chunk.split(b"\n")
            for end in complete:
                line = b"".join([*parts, end])
                parts, size = [], 0
                if line.strip():
                    yield line
            if rest:
                parts.append(rest)
                size += len(rest)
                if size > _MAX_LINE:
                    raise UnreachableError("protocol", f"a watch event is larger than {_MAX_LINE >> 20} MiB")
        if parts and (last := b"".join(parts)).strip():
            yield last

    async def _current(self) -> _Client:
        async with self._loading:
            client = self._client
            if client is not None and client.identity == _identity(client.files):
                return client
            try:
                fresh = await self._load()
            except Exception as error:
                # Plugins that a kubeconfig names raise whatever they like.
                if client is not None:
                    # Half-written credentials: what worked so far may work still.
                    return client
                raise UnreachableError(
                    "credentials", f"no connection to the API server can be prepared: {error}"
                ) from error
            self._client = fresh
            if client is not None:
                await client.retire()
            return fresh

    async def _load(self) -> _Client:
        endpoint = self._choose()
        configuration = _configuration.Configuration(host=endpoint.url)
        # Go's TLS, by which everyone else talks to the API server, does not insist on key identifiers in
        # its CA.
        configuration.disable_strict_ssl_verification = True
        files = [endpoint.address_file] if endpoint.address_file else []
        if endpoint.service_account:
            token, authority = (os.path.join(endpoint.service_account, name) for name in ("token", "ca.crt"))
            configuration.api_key["BearerToken"] = f"Bearer {_read(token)}"
            if os.path.exists(authority):
                configuration.ssl_ca_cert = authority
            files += [token, authority]
        elif endpoint.kubeconfig:
            await _kube_config.load_kube_config(
                config_file=endpoint.kubeconfig,
                client_configuration=configuration,
                persist_config=False,
                temp_file_path=self._scratch,
            )
            configuration.host = endpoint.url
            files += [endpoint.kubeconfig, *_named_files(endpoint.kubeconfig)]
            files += [name for name in (configuration.cert_file, configuration.key_file) if name]
            files += [configuration.ssl_ca_cert] if configuration.ssl_ca_cert else []
        try:
            client = _Client(configuration, tuple(dict.fromkeys(files)))
        except ssl.SSLError as error:
            raise UnreachableError(
                "credentials", f"the certificates of {', '.join(files)} can't be used: {error}"
            ) from error
        if endpoint != self.endpoint:
            log.info("API server chosen", url=endpoint.url, source=endpoint.source)
        self.endpoint = endpoint
        return client

    def _place(self) -> str:
        if self.endpoint is None:
            return "the API server"
        return f"the API server {self.endpoint.url} ({self.endpoint.source})"


def _named_files(kubeconfig: str) -> list[str]:
    """Token files that a kubeconfig names: the loader keeps their contents only."""
    merged = _kube_config.KubeConfigMerger(kubeconfig).config
    users = merged.safe_get("users") if merged is not None else None
    base = os.path.dirname(os.path.abspath(kubeconfig))
    paths = [entry.value.get("user", {}).get("tokenFile") for entry in users or []]
    return [os.path.join(base, path) for path in paths if isinstance(path, str)]


def _identity(files: tuple[str, ...]) -> tuple[tuple[int, int, int] | None, ...]:
    """What tells a renewed file from the one before, whether written in place, renamed or linked anew."""

    def one(path: str) -> tuple[int, int, int] | None:
        try:
            status = os.stat(path)
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    return tuple(one(path) for path in files)


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()


def _probe_when_idle(response: aiohttp.ClientResponse) -> None:
    """Have the kernel notice within half a minute that the peer is gone."""
    transport = response.connection.transport if response.connection else None
    peer = transport.get_extra_info("socket") if transport else None
    if peer is None or peer.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(peer.fileno())) as own:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            own.setsockopt(socket.IPPROTO_TCP, option, value)
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
