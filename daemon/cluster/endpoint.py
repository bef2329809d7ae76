"""Where the API server is and what proves who we are. Owns the order in which places are looked at.

The daemon is what makes ClusterIPs work, so it must not depend on one to reach the API server: the address
that Kubernetes sets in pods' environment comes last. Address and credentials are chosen separately, because
a pod has a service account but learns a real address only from kubelet's kubeconfig. Reads files; talks to
nobody.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

    from daemon.config import Config

KUBELET_KUBECONFIGS = ("/var/lib/kubelet/kubeconfig", "/etc/kubernetes/kubelet.conf")
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


class EndpointError(Exception):
    """No API server or no credentials are known; the message lists every place that was looked at."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The API server to use.

    Attributes:
        url: without a slash at its end.
        source: where the URL comes from, in words.
        kubeconfig: path of the kubeconfig with the credentials; empty when they are elsewhere.
        service_account: directory with token and ca.crt; empty when credentials are elsewhere. With neither,
            requests are anonymous (only for http:// URLs).
        address_file: the kubeconfig that the URL comes from; empty when it comes from elsewhere.
        from_environment: whether the URL is the one set in pods' environment, most often a ClusterIP.
    """

    url: str
    source: str
    kubeconfig: str = ""
    service_account: str = ""
    address_file: str = ""
    from_environment: bool = False


def choose(
    config: Config,
    environment: Mapping[str, str] = os.environ,
    *,
    kubelet: tuple[str, ...] = KUBELET_KUBECONFIGS,
    service_account: str = SERVICE_ACCOUNT,
) -> Endpoint:
    """Find API server and credentials.

    Credentials: `kubeconfig` of the configuration, the pod's service account, kubelet's kubeconfig. Address:
    `apiServer` of the configuration, the server of `kubeconfig`, of kubelet's kubeconfig, the environment.

    Raises:
        EndpointError: with all that was tried.
    """
    tried: list[str] = []
    account, credentials = _credentials(config, kubelet, service_account, tried)
    url, source, address_file = _address(config, environment, kubelet, tried)
    if not url:
        raise EndpointError(
            "no address of the API server is known; set apiServer in the configuration. Tried: "
            + "; ".join(tried)
        )
    if not account and not credentials and not url.startswith("http://"):
        raise EndpointError(
            f"no credentials for the API server {url} are known; set kubeconfig in the configuration. Tried: "
            + "; ".join(tried)
        )
    from_environment = source.startswith("environment")
    return Endpoint(url, source, credentials, account, address_file, from_environment=from_environment)


def _credentials(
    config: Config, kubelet: tuple[str, ...], service_account: str, tried: list[str]
) -> tuple[str, str]:
    """Directory of the service account or path of the kubeconfig, one of them empty."""
    if config.kubeconfig:
        if not os.access(config.kubeconfig, os.R_OK):
            raise EndpointError(
                f"kubeconfig {config.kubeconfig} of the configuration can't be read; create it"
            )
        return "", config.kubeconfig
    token = os.path.join(service_account, "token")
    if os.access(token, os.R_OK):
        return service_account, ""
    tried.append(f"credentials in {token} (absent: not in a pod)")
    for path in kubelet:
        if os.access(path, os.R_OK):
            return "", path
        tried.append(f"credentials in {path} (absent)")
    return "", ""


def _address(
    config: Config, environment: Mapping[str, str], kubelet: tuple[str, ...], tried: list[str]
) -> tuple[str, str, str]:
    """URL, where it comes from in words, and the kubeconfig that it comes from."""
    if config.api_server:
        return config.api_server, "apiServer of the configuration", ""
    tried.append("apiServer of the configuration (not set)")
    for path in (config.kubeconfig, *kubelet) if config.kubeconfig else kubelet:
        try:
            return server_of(path), f"server of {path}", path
        except EndpointError as error:
            tried.append(str(error))
    host, port = (
        environment.get("KUBERNETES_SERVICE_HOST", ""),
        environment.get("KUBERNETES_SERVICE_PORT", ""),
    )
    if host and port:
        return (
            f"https://{f'[{host}]' if ':' in host else host}:{port}",
            "environment KUBERNETES_SERVICE_HOST",
            "",
        )
    tried.append("environment KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT (not set)")
    return "", "", ""


def server_of(path: str) -> str:
    """The server URL of a kubeconfig's current context.

    Raises:
        EndpointError: there is none; the message says why.
    """
    try:
        with open(path, encoding="utf-8") as file:
            document = yaml.safe_load(file)
    except FileNotFoundError as error:
        raise EndpointError(f"{path} (absent)") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise EndpointError(f"{path} ({error})") from error
    try:
        contexts = {entry["name"]: entry["context"] for entry in document["contexts"]}
        clusters = {entry["name"]: entry["cluster"] for entry in document["clusters"]}
        current = document.get("current-context") or next(iter(contexts))
        server = clusters[contexts[current]["cluster"]]["server"]
    except (KeyError, TypeError, AttributeError, StopIteration) as error:
        raise EndpointError(f"{path} (names no server for its current context)") from error
    if not isinstance(server, str) or not server.startswith(("https://", "http://")):
        raise EndpointError(f"{path} (its server {server!r} is no URL)")
    return server.rstrip("/")
