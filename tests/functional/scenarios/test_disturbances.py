"""Disturbances of a living cluster: each is mended, leaves no difference, and is told in clear words."""

import json
import time
from ipaddress import ip_address
from pathlib import Path

import pytest

from tests.functional.lab_cluster import LabCluster

pytestmark = pytest.mark.root

_ROUTES = "ip route replace 192.0.2.0/24 via 172.31.1.1; ip -6 route replace 2001:db8:ffff::/64 via fd31:1::1"
"""What a network manager brings back after the address: the lab's routes to the world outside."""


def test_everybody_reaches_everybody_with_rp_filter_and_without_default_route(lab: LabCluster) -> None:
    for name in lab.cluster.nodes:
        assert lab.sh(name, "cat /proc/sys/net/ipv4/conf/*/rp_filter").split().count("1") >= 3
        assert lab.sh(name, "ip route show default; ip -6 route show default") == ""
    assert lab.faults() == []


def test_reboot(lab: LabCluster) -> None:
    before = lab.sh("node-1", "cat /proc/sys/kernel/random/boot_id")
    lab.run(lab.cluster.reboot("node-1"))
    lab.healthy()
    assert lab.sh("node-1", "cat /proc/sys/kernel/random/boot_id") != before
    assert len(lab.weftctl("node-1", "attachments")["attachments"]) == 2
    assert lab.weftctl("node-1", "ipam", "check")["leaks"] == []
    assert lab.faults() == []


def test_reboot_with_state_that_survived_it(lab: LabCluster) -> None:
    """/run/weft need not be a tmpfs: the boot id decides whether what it says still holds."""
    directory = Path("/run/weft")

    def save() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in directory.glob("state.db*")}

    state = lab.node("node-1").namespaces.run(save)
    lab.run(lab.cluster.reboot("node-1", daemon=False))

    def restore() -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        for name, content in state.items():
            (directory / name).write_bytes(content)

    lab.node("node-1").namespaces.run(restore)
    lab.run(lab.node("node-1").start_daemon())
    lab.wait_log("node-1", "the node was restarted", "void")
    lab.healthy()
    assert len(lab.weftctl("node-1", "attachments")["attachments"]) == 2
    assert lab.faults() == []


def test_a_node_joins_and_leaves(lab: LabCluster) -> None:
    with lab.traffic("pod-1a", "pod-2a") as traffic:
        node = lab.run(lab.cluster.add_node("guest"))
        lab.add_pods("visitor", node="guest")
        cidrs = lab.call(lambda: lab.cluster.node_objects()["guest"]["spec"]["podCIDRs"])
        lab.wait(lambda: lab.reaches("pod-1a", "visitor"), "the new node's pod reached")
        told = {row["name"]: row for row in lab.weftctl("node-1", "nodes")["nodes"]}
        assert told["guest"]["podCidrs"] == cidrs
        assert told["guest"]["path"] == "vxlan"
        lab.run(lab.cluster.remove_node("guest"))
        traces = [cidrs[0].partition("/")[0], str(node.addresses[0])]

        def gone() -> bool:
            seen = lab.sh("node-1", "ip route; bridge fdb; ip neigh show dev weft.vxlan; nft list ruleset")
            return not any(f" {trace} " in seen.replace("/", " ").replace("\n", " ") for trace in traces)

        lab.wait(gone, "no route, neighbour, FDB entry or element of the removed node")
    assert traffic.lost == []
    assert not traffic.broken
    lab.wait_log("node-1", "node joined", "guest")
    # The Node may have been seen before it had its pod CIDRs: then it joined without and changed.
    lab.wait_log("node-1", "node ", "guest", *cidrs)
    lab.wait_log("node-1", "node left", "guest", *cidrs)
    assert "guest" not in {row["name"] for row in lab.weftctl("node-1", "nodes")["nodes"]}


def test_a_node_changes_its_address(lab: LabCluster) -> None:
    node = lab.node("node-2")
    old = list(node.addresses)
    new = [ip_address("172.31.1.211"), ip_address("fd31:1::d3")]

    def move(source: list, target: list) -> None:  # type: ignore[type-arg]
        for one, other in zip(source, target, strict=True):
            length = 24 if one.version == 4 else 64
            lab.sh(
                "node-2", f"ip addr del {one}/{length} dev eth0; ip addr add {other}/{length} dev eth0 nodad"
            )
        lab.sh("node-2", _ROUTES)
        node.addresses[:] = target

        async def restart() -> None:
            node.kubelet.addresses[:] = target
            await node.serve()

        lab.run(restart())

    with lab.traffic("pod-1a", "pod-3a") as others:
        for source, target in ((old, new), (new, old)):
            move(source, target)
            lab.wait(
                lambda target=target: (
                    lab.weftctl("node-2", "status")["internalIps"] == [str(one) for one in target]
                ),  # type: ignore[misc]
                "the node's own daemon knows the new addresses",
            )
            lab.wait(
                lambda: lab.reaches("pod-1a", "pod-2a") and lab.reaches("pod-2a", "pod-3a"), "reached again"
            )
            lab.healthy()
            assert lab.faults() == []
    lab.wait_log("node-1", "node changed", "node-2", *map(str, old), *map(str, new))
    assert others.lost == []


def test_an_exhausted_pool_says_so(lab: LabCluster) -> None:
    def prepare() -> None:
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": "tiny"},
            "spec": {"podCIDRs": ["10.244.250.0/29", "fd10:244:0:250::/120"], "podCIDR": "10.244.250.0/29"},
        }
        lab.cluster.apply(node)

    lab.call(prepare)
    lab.run(lab.cluster.add_node("tiny"))
    assert "10.244.250.0/29" in lab.wait_finding("tiny", "PoolSmallerThanMaxPods")
    usable = int(
        next(pool["size"] for pool in lab.weftctl("tiny", "ipam", "show")["pools"] if "." in pool["cidr"])
    )
    names = [f"tiny-{number}" for number in range(usable)]
    lab.add_pods(*names, node="tiny")
    lab.add_pods("one-too-many", node="tiny", wait=False)
    message = lab.wait(
        lambda: " ".join(lab.events("one-too-many")), "the event of the pod without an address"
    )
    assert f"no IP addresses available in range 10.244.250.0/29: {usable} of {usable} in use" in message
    assert "code 101" in message
    lab.wait_finding("tiny", "PoolNearlyExhausted", "10.244.250.0/29")
    lab.delete_pods(names[0])
    lab.run(lab.cluster.wait_ready(20))
    assert lab.reaches("pod-1a", "one-too-many")
    lab.delete_pods(*names[1:], "one-too-many")
    lab.run(lab.cluster.remove_node("tiny"))


def test_a_rival_conflist_is_named(lab: LabCluster) -> None:
    path = "/etc/cni/net.d/00-rival.conflist"
    lab.node("node-1").disk.write(
        path, json.dumps({"name": "r", "cniVersion": "1.0.0", "plugins": [{"type": "x"}]})
    )
    lab.wait_finding("node-1", "RivalConflist", "00-rival.conflist")
    lab.node("node-1").disk.write(path, "{ not JSON")
    lab.wait_finding("node-1", "MalformedConflist", "00-rival.conflist")
    lab.node("node-1").disk.path(path).unlink()
    lab.wait_cleared("node-1", "RivalConflist")
    lab.wait_cleared("node-1", "MalformedConflist")


def test_a_broken_configuration_is_refused_by_key_and_pods_do_not_notice(lab: LabCluster) -> None:
    node = lab.node("node-1")
    with lab.traffic("pod-1a", "pod-2a") as traffic:
        lab.run(node.daemon.stop())
        node.configure(overlay="vxlam", mtuu=1400)
        lab.run(node.start_daemon(keep=False))
        assert lab.run(node.daemon.ended()) == 2
        told = json.dumps(lab.log("node-1")[-4:])
        assert "mtuu" in told
        assert "vxlam" in told
        assert "overlay" in told
        node.configure()
        lab.run(node.start_daemon())
        lab.healthy()
    assert traffic.lost == []
    assert not traffic.broken


def test_overlapping_cidrs_are_named(lab: LabCluster) -> None:
    overlapping = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": "wrong"},
        "spec": {"cidrs": ["10.244.0.0/20"]},
    }
    lab.call(lambda: lab.cluster.apply(overlapping))
    lab.wait_finding("node-1", "AddressOverlap", "10.244.0.0/20", "Services", "pods")
    resource = lab.cluster.storage.catalogue.named("servicecidrs")
    lab.call(lambda: lab.cluster.storage.delete(resource, "", "wrong"))
    lab.wait_cleared("node-1", "AddressOverlap")


def test_an_internal_ip_deleted_and_added_again(lab: LabCluster) -> None:
    """It takes along every route that has it as preferred source; the pods of others must not notice."""
    with lab.traffic("pod-2a", "pod-3a") as others:
        for address, length in (("172.31.1.10", 24), ("fd31:1::a", 64)):
            lab.sh("node-1", f"ip addr del {address}/{length} dev eth0")
            lab.wait_finding("node-1", "InternalIPMissing", address, "add the address")
            lab.sh("node-1", f"ip addr add {address}/{length} dev eth0 nodad")
            lab.sh("node-1", _ROUTES)
            begin = time.monotonic()
            lab.wait(
                lambda: lab.reaches("pod-1a", "pod-2a") and lab.reaches("pod-2a", "pod-1a"),
                "reached again",
                5,
            )
            assert time.monotonic() - begin < 2
            lab.wait_cleared("node-1", "InternalIPMissing")
            lab.healthy()
            assert lab.faults() == []
    assert others.lost == []


@pytest.mark.parametrize("daemon", ["running", "stopped"])
def test_the_state_directory_is_deleted_under_live_pods(lab: LabCluster, daemon: str) -> None:
    node = lab.node("node-1")
    addresses = {name: lab.addresses(name) for name in ("pod-1a", "pod-1b")}
    with lab.traffic("pod-1a", "pod-2a") as traffic:
        if daemon == "stopped":
            lab.run(node.daemon.stop())
        lab.sh("node-1", "rm -rf /run/weft")
        if daemon == "stopped":
            lab.run(node.start_daemon())
        else:
            lab.wait(
                lambda: node.daemon.starts > 1 or "StateLost" in lab.findings("node-1"), "the loss is noticed"
            )
        lab.wait(
            lambda: len(lab.weftctl("node-1", "attachments").get("attachments", [])) == 2, "state rebuilt"
        )
        lab.add_pods("fresh", node="node-1")
        told = {
            row["podName"]: row["addresses"] for row in lab.weftctl("node-1", "attachments")["attachments"]
        }
        assert set(told) == {"pod-1a", "pod-1b", "fresh"}
        assert {name: told[name] for name in addresses} == addresses
        lab.delete_pods("fresh")
    assert traffic.lost == []
    assert not traffic.broken


def test_a_chained_plugin_that_changes_the_mac(lab: LabCluster) -> None:
    node = lab.node("node-1")
    tuning = Path("/usr/lib/cni/tuning")
    if not tuning.exists():
        pytest.skip("the plugin tuning of containernetworking-plugins is not installed")
    node.disk.install_plugins(lab.options.shim, (tuning,))
    own = json.loads(node.disk.path("/etc/cni/net.d/05-weft.conflist").read_text())
    own["plugins"].append({"type": "tuning", "mac": "02:00:00:00:00:99"})
    own["cniVersions"].remove("1.1.0")  # Debian's plugins speak up to 1.0.0
    node.disk.write("/etc/cni/net.d/04-chained.conflist", json.dumps(own))
    lab.add_pods("tuned", node="node-1")
    assert "02:00:00:00:00:99" in lab.pod_sh("tuned", "ip link show eth0")
    lab.wait(
        lambda: lab.reaches("pod-2a", "tuned") and lab.reaches("tuned", "pod-2a"),
        "reached with the new MAC",
        5,
    )
    lab.healthy()
    assert lab.faults() == []
    lab.run(node.runtime.check(lab.sandbox("tuned")))
    lab.delete_pods("tuned")
    node.disk.path("/etc/cni/net.d/04-chained.conflist").unlink()


def test_a_killed_daemon_returns_to_what_it_left(lab: LabCluster) -> None:
    """Traffic does not notice; a DEL while it is down is recorded and done on its return."""
    node = lab.node("node-1")
    lab.add_pods("doomed", node="node-1")
    address = lab.addresses("doomed")[0]
    with lab.traffic("pod-1a", "pod-2a") as to, lab.traffic("pod-2b", "pod-1b", 6) as back:
        lab.run(node.daemon.kill())
        lab.delete_pods("doomed")
        assert lab.sh("node-1", "ls /run/weft/deletions | wc -l").strip() != "0"
        lab.add_pods("early", node="node-1", wait=False)
        lab.wait(
            lambda: any("code 11" in event for event in lab.events("early")), "ADD is told to try again later"
        )
        lab.run(node.start_daemon())
        lab.healthy()
    for traffic in (to, back):
        assert traffic.lost == []
        assert not traffic.broken
    told = lab.weftctl("node-1", "attachments")["attachments"]
    assert {row["podName"] for row in told} == {"pod-1a", "pod-1b", "early"}
    assert address not in lab.sh("node-1", "ip route")
    assert lab.weftctl("node-1", "status")["pendingDeletions"] == 0
    lab.delete_pods("early")


def test_an_api_outage_stops_nothing_but_changes(lab: LabCluster) -> None:
    with lab.traffic("pod-1a", "pod-2a") as traffic:
        lab.run(lab.api.stop())
        lab.wait(lambda: not lab.weftctl("node-1", "status")["apiServerConnected"], "the outage is noticed")
        lab.add_pods("meanwhile", node="node-1")
        assert lab.reaches("pod-2a", "meanwhile")
        lab.run(lab.cluster.serve_api())
        lab.wait(lambda: lab.weftctl("node-1", "status")["apiServerConnected"], "connected again", 30)
    assert traffic.lost == []
    lab.delete_pods("meanwhile")


@pytest.mark.parametrize("fault", ["forgotten history", "dropped watches", "errors", "throttling"])
def test_a_sick_api_server_loses_no_change(lab: LabCluster, fault: str) -> None:
    phantom = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "phantom"},
        "spec": {"podCIDRs": ["10.244.251.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "172.31.1.250"}]},
    }

    def break_it() -> None:
        match fault:
            case "forgotten history":
                lab.cluster.storage.forget()
            case "errors":
                lab.api.faults.status = 500
            case "throttling":
                lab.api.faults.status = 429
        lab.api.drop_watches()
        lab.cluster.apply(phantom)

    lab.call(break_it)
    time.sleep(0.5)
    lab.api.faults.status = 0
    lab.wait(lambda: "10.244.251.0/24" in lab.sh("node-1", "ip route"), "the change arrives", 30)
    resource = lab.cluster.storage.catalogue.named("nodes")
    lab.call(lambda: lab.cluster.storage.delete(resource, "", "phantom"))
    lab.wait(lambda: "10.244.251.0/24" not in lab.sh("node-1", "ip route"), "the removal arrives", 30)


@pytest.mark.parametrize(
    "damage",
    [
        "ip link del weft.vxlan",
        "ip link set weft.vxlan down",
        "ip route flush proto 119; ip -6 route flush proto 119",
        "nft flush ruleset",
        "nft delete table ip weft",
        "bridge fdb flush dev weft.vxlan; ip neigh flush dev weft.vxlan nud permanent",
        "ip addr flush dev weft.vxlan",
        "ip link set eth0 down; sleep 0.2; ip link set eth0 up; ip addr add fd31:1::a/64 dev eth0 nodad; "
        "sleep 0.1; " + _ROUTES,
        "sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0",
    ],
)
def test_damage_by_others_is_repaired(lab: LabCluster, damage: str) -> None:
    with lab.traffic("pod-2a", "pod-3a") as others:
        before = lab.weftctl("node-1", "status")["repairs"]
        lab.sh("node-1", damage)
        lab.wait(lambda: not lab.weftctl("node-1", "diff")["differences"], "repaired", 10)
        lab.wait(lambda: lab.faults() == [], "everything reached again", 10)
        if "eth0" not in damage:  # which is a change of the underlay, not of what is ours
            assert lab.weftctl("node-1", "status")["repairs"] > before
    assert others.lost == []


def test_what_weftctl_shows(lab: LabCluster) -> None:
    """The other tests ask as weftctl does; this one runs the program."""
    for question in (["status"], ["attachments"], ["nodes"], ["diff"], ["ipam", "show"], ["ipam", "check"]):
        shown = json.loads(lab.run_weftctl("node-1", *question, "-o", "json"))
        told = lab.weftctl("node-1", *question)
        assert set(told) <= set(shown), question
    assert "No difference" in lab.run_weftctl("node-1", "diff")
    assert "pod-1a" in lab.run_weftctl("node-1", "attachments")
