"""weftctl against a daemon: what each command prints and how it exits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeAlias

import pytest

from ctl.exits import Exit
from weft_rpc import admin_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from click.testing import Result

    from .conftest import FakeDaemon

    Weftctl: TypeAlias = Callable[..., Result]

STATUS = admin_pb2.StatusResponse(
    version="0.1.0",
    node_name="n1",
    ready=True,
    uptime_seconds=7384,
    pod_cidrs=["10.1.1.0/24", "fd00:1::/64"],
    internal_ips=["172.20.0.2"],
    overlay="vxlan",
    mtu=1450,
    attachments=12,
    nodes=3,
    api_server_connected=True,
    seconds_since_sync=4.2,
    repairs=2,
)
RIVAL = admin_pb2.Finding(
    name="RivalConflist", level=admin_pb2.LEVEL_WARNING, message="10-flannel.conflist is there"
)
BROKEN = admin_pb2.Finding(name="NoPodCIDR", level=admin_pb2.LEVEL_ERROR, message="the Node has no podCIDRs")
FINE = admin_pb2.Finding(name="KernelProbe", level=admin_pb2.LEVEL_OK, message="all is there")
ATTACHMENTS = admin_pb2.ListAttachmentsResponse(
    attachments=[
        admin_pb2.Attachment(
            network="weft",
            container_id="f" * 64,
            ifname="eth0",
            netns="/run/netns/b",
            host_link="weft0123456789a",
            mac="02:00:00:00:00:01",
            mtu=1450,
            addresses=["10.1.1.7", "fd00:1::7"],
            pod_namespace="default",
            pod_name="web-1",
            pod_uid="u-1",
            state="attached",
            age_seconds=75,
            ports=[
                admin_pb2.HostPort(host_port=8080, container_port=80, protocol="tcp"),
                admin_pb2.HostPort(host_ip="192.0.2.1", host_port=53, container_port=5353, protocol="udp"),
                admin_pb2.HostPort(host_ip="2001:db8::1", host_port=53, container_port=53, protocol="udp"),
            ],
        ),
        admin_pb2.Attachment(
            network="weft",
            container_id="a" * 64,
            ifname="eth0",
            host_link="weftba987654321",
            addresses=["10.1.1.8"],
            pod_namespace="kube-system",
            pod_name="dns",
            state="pending",
        ),
    ]
)


def test_status(daemon: FakeDaemon, weftctl: Weftctl) -> None:
    daemon.answers["Status"] = STATUS
    result = weftctl("status")
    assert result.output == (
        "Node         n1\n"
        "State        ready\n"
        "Daemon       weftd 0.1.0, up 2h03m\n"
        "API server   connected\n"
        "Addresses    172.20.0.2\n"
        "Pod CIDRs    10.1.1.0/24, fd00:1::/64\n"
        "Overlay      vxlan, MTU of pods 1450\n"
        "Attachments  12\n"
        "Nodes        3\n"
        "Last sync    4s ago, 2 foreign changes repaired\n"
        "Deletions    none waiting\n"
        "\n"
        "No warnings.\n"
    )
    assert result.exit_code == Exit.OK
    assert daemon.asked == ["Status"]


def test_status_shows_the_worst_first_and_exits_1(daemon: FakeDaemon, weftctl: Weftctl) -> None:
    answer = admin_pb2.StatusResponse()
    answer.CopyFrom(STATUS)
    answer.findings.extend([RIVAL, FINE, BROKEN])
    daemon.answers["Status"] = answer
    result = weftctl("status")
    assert result.output.splitlines()[-3:] == [
        "LEVEL    FINDING        MESSAGE",
        "error    NoPodCIDR      the Node has no podCIDRs",
        "warning  RivalConflist  10-flannel.conflist is there",
    ]
    assert result.exit_code == Exit.FOUND


def test_status_verbose_adds_pools_and_what_was_found_well(daemon: FakeDaemon, weftctl: Weftctl) -> None:
    answer = admin_pb2.StatusResponse()
    answer.CopyFrom(STATUS)
    answer.findings.append(FINE)
    daemon.answers["Status"] = answer
    daemon.answers["ShowIpam"] = admin_pb2.ShowIpamResponse(
        pools=[admin_pb2.Pool(cidr="10.1.1.0/24", size=253, used=12, cooling=1, free=240)]
    )
    result = weftctl("status", "--verbose")
    assert "Pool         10.1.1.0/24: 12 of 253 used, 1 cooling, 240 free\n" in result.output
    assert result.output.splitlines()[-1] == "ok     KernelProbe  all is there"
    assert result.exit_code == Exit.OK


@pytest.mark.parametrize("field", ["ready", "api_server_connected"])
def test_status_of_a_node_that_is_not_well(daemon: FakeDaemon, weftctl: Weftctl, field: str) -> None:
    answer = admin_pb2.StatusResponse(seconds_since_sync=-1, pending_deletions=3)
    answer.MergeFrom(admin_pb2.StatusResponse(ready=field != "ready", api_server_connected=field == "ready"))
    daemon.answers["Status"] = answer
    result = weftctl("status")
    assert ("not ready" in result.output) is (field == "ready")
    assert ("not connected" in result.output) is (field != "ready")
    assert "Last sync    not yet" in result.output
    assert "3 waiting" in result.output
    assert result.exit_code == (Exit.FOUND if field == "ready" else Exit.OK)


def test_status_as_json_is_the_message(daemon: FakeDaemon, weftctl: Weftctl) -> None:
    daemon.answers["Status"] = STATUS
    value = json.loads(weftctl("status", "-o", "json").output)
    assert value["podCidrs"] == ["10.1.1.0/24", "fd00:1::/64"]
    assert value["secondsSinceSync"] == pytest.approx(4.2)
    assert value["ready"] is True
    assert set(value) == {"source", *(item.json_name for item in admin_pb2.StatusResponse.DESCRIPTOR.fields)}


def test_attachments(daemon: FakeDaemon, weftctl: Weftctl) -> None:
    daemon.answers["ListAttachments"] = ATTACHMENTS
    result = weftctl("attachments")
    assert result.output == (
        "NAMESPACE    POD    ADDRESSES            INTERFACE  HOST LINK        STATE       AGE  CONTAINER\n"
        "default      web-1  10.1.1.7, fd00:1::7  eth0       weft0123456789a  attached  1m15s  ffffffffffff\n"
        "kube-system  dns    10.1.1.8             eth0       weftba987654321  pending      0s  aaaaaaaaaaaa\n"
    )
    assert result.exit_code == Exit.OK
    wide = weftctl("-o", "wide", "attachments").output
    assert "/run/netns/b" in wide
    assert "02:00:00:00:00:01" in wide
    assert "8080->80/tcp, 192.0.2.1:53->5353/udp, [2001:db8::1]:53->53/udp" in wide
    (first, _) = json.loads(weftctl("-o", "json", "attachments").output)["attachments"]
    assert first["ports"][1] == {
        "hostIp": "192.0.2.1",
        "hostPort": 53,
        "containerPort": 5353,
        "protocol": "udp",
    }


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("-n", "default"), ["web-1"]),
        (("dns",), ["dns"]),
        (("-n", "default", "dns"), []),
        ((), ["web-1", "dns"]),
    ],
)
def test_attachments_are_filtered(
    daemon: FakeDaemon, weftctl: Weftctl, arguments: tuple[str, ...], names: list[str]
) -> None:
    daemon.answers["ListAttachments"] = ATTACHMENTS
    value = json.loads(weftctl("attachments", *arguments, "-o", "json").output)
    assert [row["podName"] for row in value["attachments"]] == names


def test_no_attachment(daemon: FakeDaemon, weftctl: Weftctl) -> None:
    daemon.answers["ListAttachments"] = admin_pb2.ListAttachmentsResponse()
    assert weftctl("attachments").output == "No pod is attached.\n"


def test_ipam_show(daemon: FakeDaemon, weftctl: Weftctl) -> None:
    daemon.answers["ShowIpam"] = admin_pb2.ShowIpamResponse(
        pools=[
            admin_pb2.Pool(cidr="10.1.1.0/24", size=253, used=12, cooling=1, free=240),
            admin_pb2.Pool(cidr="10.1.2.0/30", size=1, used=1),
            admin_pb2.Pool(cidr="10.1.3.0/32"),
        ]
    )
    assert weftctl("ipam", "show").output == (
        "POOL         SIZE  USED  COOLING  FREE  USED %\n"
        "10.1.1.0/24   253    12        1   240     4.7\n"
        "10.1.2.0/30     1     1        0     0   100.0\n"
        "10.1.3.0/32     0     0        0     0       -\n"
    )


def test_ipam_check(daemon: FakeDaemon, weftctl: Weftctl) -> None:
    daemon.answers["CheckIpam"] = admin_pb2.CheckIpamResponse()
    result = weftctl("ipam", "check")
    assert (result.output, result.exit_code) == (
        "No leak: every lease has its pod, every pod its lease.\n",
        Exit.OK,
    )
    daemon.answers["CheckIpam"] = admin_pb2.CheckIpamResponse(
        leaks=[admin_pb2.Leak(address="10.1.1.9", container_id="c9", reason="network namespace is gone")]
    )
    result = weftctl("ipam", "check")
    assert result.output.splitlines()[1] == "10.1.1.9  c9         network namespace is gone"
    assert result.exit_code == Exit.FOUND


def test_nodes(daemon: FakeDaemon, weftctl: Weftctl) -> None:
    daemon.answers["ListNodes"] = admin_pb2.ListNodesResponse(
        nodes=[
            admin_pb2.Node(name="a", internal_ips=["172.20.0.3"], pod_cidrs=["10.1.2.0/24"], path="vxlan"),
            admin_pb2.Node(name="n1", internal_ips=["172.20.0.2"], pod_cidrs=["10.1.1.0/24"], path="local"),
        ]
    )
    result = weftctl("nodes")
    assert result.output == (
        "NAME  PATH   ADDRESSES   POD CIDRS    PROBLEM\n"
        "n1    local  172.20.0.2  10.1.1.0/24  -\n"
        "a     vxlan  172.20.0.3  10.1.2.0/24  -\n"
    )
    assert result.exit_code == Exit.OK
    daemon.answers["ListNodes"] = admin_pb2.ListNodesResponse(
        nodes=[admin_pb2.Node(name="a", path="none", problem="it has no InternalIP")]
    )
    result = weftctl("nodes")
    assert "it has no InternalIP" in result.output
    assert result.exit_code == Exit.FOUND


def web() -> admin_pb2.Service:
    frontend = admin_pb2.Frontend(
        kind="ClusterIP",
        address="10.96.0.7:80",
        protocol="TCP",
        family="IPv4",
        source="strangers",
        affinity_seconds=60,
        endpoints=[
            admin_pb2.Endpoint(address="10.0.0.1:8080", local=True, outside=True),
            admin_pb2.Endpoint(address="10.0.0.2:8080", outside=True),
        ],
    )
    lost = admin_pb2.Frontend(kind="ExternalIP", address="203.0.113.1:80", protocol="TCP", holder="shop/old")
    nobody = admin_pb2.Frontend(kind="NodePort", address=":30080", protocol="TCP", absence="refuse")
    return admin_pb2.Service(name="shop/web", type="NodePort", frontends=[frontend, lost, nobody])


def test_services(daemon: FakeDaemon, weftctl: Weftctl) -> None:
    daemon.answers["ListServices"] = admin_pb2.ListServicesResponse(services=[web()])
    result = weftctl("services")
    assert result.output.splitlines() == [
        "SERVICE   KIND        FRONTEND            ENDPOINTS                        LOCAL",
        "shop/web  ClusterIP   TCP 10.96.0.7:80    10.0.0.1:8080, 10.0.0.2:8080         1",
        "shop/web  ExternalIP  TCP 203.0.113.1:80  none: Service shop/old has this      0",
        "shop/web  NodePort    TCP :30080          none: refused                        0",
    ]
    assert result.exit_code == Exit.OK
    wide = weftctl("services", "-o", "wide").output
    assert "kept for pods  60 s      everywhere" in wide
    one = weftctl("services", "shop/web").output
    assert "TCP 10.96.0.7:80  10.0.0.2:8080  other  everybody" in one


def test_a_service_that_is_not_served_is_found_missing(daemon: FakeDaemon, weftctl: Weftctl) -> None:
    daemon.answers["ListServices"] = admin_pb2.ListServicesResponse()
    result = weftctl("services", "web")
    assert "Service default/web is not served here" in result.output
    assert result.exit_code == Exit.FOUND
    assert weftctl("services").exit_code == Exit.OK


def test_diff(daemon: FakeDaemon, weftctl: Weftctl) -> None:
    daemon.answers["Diff"] = admin_pb2.DiffResponse(desired_age_seconds=3)
    result = weftctl("diff")
    assert (result.output, result.exit_code) == ("No difference; the desired state is 3s old.\n", Exit.OK)
    daemon.answers["Diff"] = admin_pb2.DiffResponse(
        differences=[admin_pb2.Difference(kind="route", action="missing", object="10.1.2.0/24 via 10.1.2.0")]
    )
    result = weftctl("diff")
    assert result.output == "ACTION   KIND   OBJECT\nmissing  route  10.1.2.0/24 via 10.1.2.0\n"
    assert result.exit_code == Exit.FOUND


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(weftctl: Weftctl, shell: str) -> None:
    result = weftctl("completion", shell)
    assert "_WEFTCTL_COMPLETE" in result.output
    assert result.exit_code == Exit.OK


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("status", "-o", "xml"), ("status", "--watch", "0"), ("ipam", "x")]
)
def test_wrong_usage(weftctl: Weftctl, arguments: tuple[str, ...]) -> None:
    result = weftctl(*arguments)
    assert result.exit_code == Exit.USAGE
    assert "Error" in result.output


def test_options_count_before_and_after_the_command(daemon: FakeDaemon, weftctl: Weftctl) -> None:
    daemon.answers["Diff"] = admin_pb2.DiffResponse()
    assert json.loads(weftctl("-o", "json", "diff").output) == json.loads(
        weftctl("diff", "-o", "json").output
    )
    assert json.loads(weftctl("-o", "yaml", "diff", "-o", "json").output)["differences"] == []


def test_version(weftctl: Weftctl) -> None:
    assert weftctl("--version").output.startswith("weftctl 0.")
