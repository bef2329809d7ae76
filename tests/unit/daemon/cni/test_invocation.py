"""The environment of a request."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from daemon.cni.errors import CniError, Code
from daemon.cni.invocation import read


@dataclass(frozen=True)
class Given:
    command: str = "ADD"
    container_id: str = "c1"
    netns: str = "/run/netns/a"
    ifname: str = "eth0"
    args: str = ""
    path: str = "/opt/cni/bin"


def refusal(given: Given) -> str:
    with pytest.raises(CniError) as caught:
        read(given)  # type: ignore[arg-type]
    assert caught.value.code is Code.INVALID_ENVIRONMENT
    return str(caught.value)


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("ADD", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"),
        ("CHECK", "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH"),
        ("DEL", "CNI_CONTAINERID,CNI_IFNAME,CNI_PATH"),
        ("GC", "CNI_PATH"),
        ("STATUS", "CNI_PATH"),
    ],
)
def test_all_missing_variables_are_named_at_once(command: str, missing: str) -> None:
    assert refusal(Given(command, "", "", "", "", "")) == f"required env variables [{missing}] missing"


def test_a_missing_command_is_named() -> None:
    assert refusal(Given(command="")) == "required env variables [CNI_COMMAND] missing"
    assert refusal(Given(command="add")) == "unknown CNI_COMMAND: add"


def test_del_needs_no_namespace_and_ignores_arguments() -> None:
    read_back = read(Given("DEL", netns="", args="this;is=not=fine"))  # type: ignore[arg-type]
    assert (read_back.netns, read_back.args) == ("", {})


def test_version_needs_nothing() -> None:
    assert read(Given("VERSION", "", "", "", "", "")).command == "VERSION"  # type: ignore[arg-type]


@pytest.mark.parametrize("container_id", ["-a", ".", "a/b", "a b", "ü", "a\n"])
def test_container_ids_are_checked(container_id: str) -> None:
    assert "CNI_CONTAINERID" in refusal(Given(container_id=container_id))


@pytest.mark.parametrize(
    "ifname", [".", "..", "a/b", "a:b", "a b", "a\tb", "abcdefghijklmnop", "é" * 8, "a\u2028b", "a\0"]
)
def test_interface_names_are_checked(ifname: str) -> None:
    assert "interface name" in refusal(Given(ifname=ifname))


@pytest.mark.parametrize("ifname", ["eth0", "abcdefghijklmno", "é" * 7, "a-b_c.d", "..."])
def test_what_the_kernel_takes_is_taken(ifname: str) -> None:
    assert read(Given(ifname=ifname)).ifname == ifname  # type: ignore[arg-type]


def test_arguments_in_any_order() -> None:
    for text in (
        "K8S_POD_NAME=p;IgnoreUnknown=1;X=y;K8S_POD_NAMESPACE=n",
        "X=y;K8S_POD_NAMESPACE=n;K8S_POD_NAME=p;IgnoreUnknown=1",
    ):
        assert read(Given(args=text)).args == {"K8S_POD_NAME": "p", "K8S_POD_NAMESPACE": "n"}  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["1", "true", "True", "TRUE"])
def test_unknown_arguments_may_be_ignored(value: str) -> None:
    assert read(Given(args=f"IgnoreUnknown={value};IP=10.0.0.1")).args == {}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["X=y", "IP=10.0.0.1;K8S_POD_NAME=p", "X=y;IgnoreUnknown=0", "X=y;IgnoreUnknown=false"]
)
def test_unknown_arguments_are_refused_else(text: str) -> None:
    assert "unknown args" in refusal(Given(args=text))


@pytest.mark.parametrize(
    "text", ["K8S_POD_NAME", "K8S_POD_NAME=a=b", ";", "K8S_POD_NAME=a;", "IgnoreUnknown=yes"]
)
def test_malformed_arguments_are_refused(text: str) -> None:
    assert "CNI_ARGS" in refusal(Given(args=text))


def test_one_fault_after_another() -> None:
    good = Given()
    read(good)  # type: ignore[arg-type]
    for changed in (replace(good, netns=""), replace(good, ifname=""), replace(good, path="")):
        assert "missing" in refusal(changed)
