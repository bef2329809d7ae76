"""What follows from host ports: stale flows, and node ports that they hide."""

from __future__ import annotations

from daemon.compile.hostports import HIDES_NODE_PORT, hidden_node_ports, stale_flows
from datapath.conntrack import Destination
from datapath.nft.frontends import Frontend
from datapath.nft.rules import Family
from ipam.ports import PortMapping
from ipam.record import AttachmentKey, Record

TCP, UDP = 6, 17
NODE4 = bytes((192, 0, 2, 1))
IPV4, IPV6 = Family.IPV4, Family.IPV6


def pod(number: int, *ports: PortMapping, families: str = "46") -> Record:
    four, six = bytes((10, 0, 0, number)), b"\xfd" + bytes(14) + bytes((number,))
    addresses = tuple(each for each, name in ((four, "4"), (six, "6")) if name in families)
    return Record(
        AttachmentKey("weft", f"c{number}", "eth0"),
        f"/run/netns/{number}",
        f"weft{number:011x}",
        bytes(6),
        1450,
        addresses,
        "default",
        f"pod-{number}",
        ports=ports,
    )


DNS = PortMapping(b"", UDP, 53, 5353)
WEB = PortMapping(b"", TCP, 80, 8080)


def test_only_udp_has_flows_that_go_stale() -> None:
    assert not stale_flows(pod(1, WEB), [pod(1, WEB)]).serving
    assert not stale_flows(pod(1), []).serving


def test_flows_to_a_port_that_came_lead_to_its_pod() -> None:
    new = pod(1, DNS, WEB)
    assert stale_flows(new, [pod(2), new, pod(3, WEB)]).serving == {
        Destination(IPV4, None, 53): {(new.addresses[0], 5353)},
        Destination(IPV6, None, 53): {(new.addresses[1], 5353)},
    }


def test_flows_to_a_port_that_went_lead_to_nobody() -> None:
    assert stale_flows(pod(1, DNS, families="4"), []).serving == {Destination(IPV4, None, 53): frozenset()}


def test_who_has_the_port_at_one_address_keeps_its_flows() -> None:
    """They are flows to an address of the node as well, and to that port."""
    at_one = pod(2, DNS._replace(host_address=NODE4, container_port=54))
    assert stale_flows(pod(1, DNS), [at_one]).serving == {
        Destination(IPV4, None, 53): frozenset(),
        Destination(IPV6, None, 53): frozenset(),
        Destination(IPV4, NODE4, 53): {(at_one.addresses[0], 54)},
    }


def test_a_port_at_one_address_concerns_nobody_elsewhere() -> None:
    at_one = pod(1, DNS._replace(host_address=NODE4))
    assert stale_flows(at_one, [at_one, pod(2, WEB)]).serving == {
        Destination(IPV4, NODE4, 53): {(at_one.addresses[0], 5353)}
    }
    # Whoever has it at all addresses has it now.
    everywhere = pod(3, DNS)
    assert stale_flows(at_one, [everywhere]).serving == {
        Destination(IPV4, NODE4, 53): frozenset(),
        Destination(IPV4, None, 53): {(everywhere.addresses[0], 5353)},
    }


def test_a_hidden_node_port_is_told_with_both_names() -> None:
    services = {Frontend(IPV4, None, TCP, 80): "shop/web"}

    def holder(frontend: Frontend) -> str:
        return services.get(frontend, "")

    (problem,) = hidden_node_ports([pod(1, DNS), pod(2), pod(3, WEB)], holder)
    assert problem.name == HIDES_NODE_PORT
    assert problem.level == "warning"
    assert "80->8080/tcp of pod default/pod-3" in problem.message
    assert "node port 80 of Service shop/web" in problem.message


def test_a_port_hidden_in_both_families_is_one_problem() -> None:
    keys = [problem.key for problem in hidden_node_ports([pod(1, WEB)], lambda _: "shop/web")]
    assert len(set(keys)) == 1
    assert not list(hidden_node_ports([pod(1, WEB)], lambda _: ""))
