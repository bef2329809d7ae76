"""Where the API server is looked for, in which order, and what is said when nothing is found."""

from __future__ import annotations

import os

import pytest
import yaml

from daemon.cluster.endpoint import Endpoint, EndpointError, choose, server_of
from daemon.config import Config

POD = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "443"}


def kubeconfig(path: str, server: str = "https://192.168.0.1:6443") -> str:
    document = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [
            {"name": "other", "cluster": {"server": "https://wrong"}},
            {"name": "c", "cluster": {"server": server}},
        ],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    with open(path, "w", encoding="utf-8") as file:
        yaml.safe_dump(document, file)
    return path


@pytest.fixture
def place(tmp_path: object) -> str:
    return str(tmp_path)


def service_account(place: str) -> str:
    path = os.path.join(place, "serviceaccount")
    os.mkdir(path)
    with open(os.path.join(path, "token"), "w", encoding="ascii") as file:
        file.write("token")
    return path


def test_in_a_pod_the_address_comes_from_kubelet_and_the_credentials_from_the_pod(place: str) -> None:
    account, kubelet = service_account(place), kubeconfig(f"{place}/kubelet.conf")
    endpoint = choose(Config(), POD, kubelet=(f"{place}/none", kubelet), service_account=account)
    assert endpoint == Endpoint(
        "https://192.168.0.1:6443", f"server of {kubelet}", service_account=account, address_file=kubelet
    )


def test_the_environment_comes_last_and_is_remembered_as_such(place: str) -> None:
    account = service_account(place)
    endpoint = choose(Config(), POD, kubelet=(f"{place}/none",), service_account=account)
    assert endpoint.url == "https://10.96.0.1:443"
    assert endpoint.from_environment
    six = {**POD, "KUBERNETES_SERVICE_HOST": "fd00:96::1"}
    assert choose(Config(), six, kubelet=(), service_account=account).url == "https://[fd00:96::1]:443"


def test_the_configuration_comes_first(place: str) -> None:
    account, kubelet = service_account(place), kubeconfig(f"{place}/kubelet.conf")
    own = kubeconfig(f"{place}/own.conf", "https://own:1/")
    config = Config(api_server="https://configured:6443", kubeconfig=own)
    endpoint = choose(config, POD, kubelet=(kubelet,), service_account=account)
    assert (endpoint.url, endpoint.kubeconfig, endpoint.service_account) == (
        "https://configured:6443",
        own,
        "",
    )
    endpoint = choose(Config(kubeconfig=own), POD, kubelet=(kubelet,), service_account=account)
    assert (endpoint.url, endpoint.source) == ("https://own:1", f"server of {own}")


def test_outside_of_pods_kubelets_kubeconfig_serves_for_both(place: str) -> None:
    kubelet = kubeconfig(f"{place}/kubelet.conf")
    endpoint = choose(Config(), {}, kubelet=(kubelet,), service_account=f"{place}/none")
    assert endpoint == Endpoint(
        "https://192.168.0.1:6443", f"server of {kubelet}", kubeconfig=kubelet, address_file=kubelet
    )


def test_plain_http_needs_no_credentials(place: str) -> None:
    endpoint = choose(Config(api_server="http://10.0.0.1:8080"), {}, kubelet=(), service_account=place)
    assert endpoint == Endpoint("http://10.0.0.1:8080", "apiServer of the configuration")


def test_all_that_was_tried_is_told(place: str) -> None:
    with pytest.raises(EndpointError) as caught:
        choose(Config(), {}, kubelet=(f"{place}/a", f"{place}/b"), service_account=f"{place}/sa")
    message = str(caught.value)
    assert "set apiServer in the configuration" in message
    for words in (
        f"{place}/sa/token",
        f"{place}/a (absent)",
        f"{place}/b (absent)",
        "KUBERNETES_SERVICE_HOST",
    ):
        assert words in message


def test_an_address_without_credentials_is_told_as_such(place: str) -> None:
    with pytest.raises(EndpointError, match=r"no credentials for the API server https://a:1.*Tried: .*token"):
        choose(Config(api_server="https://a:1"), {}, kubelet=(f"{place}/a",), service_account=f"{place}/sa")


def test_a_configured_kubeconfig_must_be_there(place: str) -> None:
    with pytest.raises(EndpointError, match="can't be read"):
        choose(Config(kubeconfig=f"{place}/none"), POD, kubelet=(), service_account=place)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "names no server"),
        ("[]", "names no server"),
        ("clusters: []\ncontexts: []", "names no server"),
        ("a: [", "while parsing"),
        (
            "contexts: [{name: a, context: {cluster: b}}]\nclusters: [{name: b, cluster: {server: 5}}]",
            "is no URL",
        ),
    ],
)
def test_a_kubeconfig_without_a_server_says_so(place: str, content: str, words: str) -> None:
    with open(f"{place}/bad.conf", "w", encoding="utf-8") as file:
        file.write(content)
    with pytest.raises(EndpointError, match=words):
        server_of(f"{place}/bad.conf")
