"""Names of links and chains say which other networks and firewalls are on the machine."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from datapath import surroundings
from datapath.surroundings import ForeignChain, Surroundings, describe, foreign_listeners

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("link", "product"),
    [
        ("cni0", "the bridge plugin (flannel uses it)"),
        ("flannel.1", "flannel"),
        ("flannel-v6.1", "flannel"),
        ("cali0123456789a", "Calico"),
        ("vxlan.calico", "Calico"),
        ("cilium_host", "Cilium"),
        ("antrea-gw0", "Antrea"),
        ("kube-bridge", "kube-router"),
        ("weave", "Weave Net"),
    ],
)
def test_a_link_of_another_network(link: str, product: str) -> None:
    assert describe(["lo", "eth0", link], []).leftovers == {product: f"link {link}"}


@pytest.mark.parametrize(
    "link", ["lo", "eth0", "weft.vxlan", "weft0123456789a", "cali", "docker0", "kube-dummy", "weaver"]
)
def test_links_that_are_no_leftovers(link: str) -> None:
    assert describe([link], []) == Surroundings()


def test_chains_are_counted_by_product_and_many_links_summed_up() -> None:
    chains = [ForeignChain("ip", "filter", f"cali-{number}", forward_drop=False) for number in range(30)]
    links = [f"cali{number:011x}" for number in range(5)]
    found = describe(links, chains).leftovers["Calico"]
    assert found.startswith("link cali00000000000, link cali00000000001")
    assert found.endswith("and 3 more")


def test_a_forward_chain_that_drops_and_firewalld() -> None:
    chains = [
        ForeignChain("ip", "filter", "FORWARD", forward_drop=True),
        ForeignChain("ip6", "filter", "FORWARD", forward_drop=False),
        ForeignChain("inet", "firewalld", "filter_FORWARD", forward_drop=False),
    ]
    assert describe([], chains) == Surroundings({}, ("ip filter FORWARD",), firewalld=True)


def chains(*names: str) -> list[ForeignChain]:
    """Chains as `family table name`."""
    split = [each.split() for each in names]
    return [ForeignChain(family, table, name, forward_drop=False) for family, table, name in split]


def test_kube_proxys_tables_chains_and_link_are_named() -> None:
    found = describe(
        ["lo", "kube-ipvs0"],
        chains(
            "ip kube-proxy services",
            "ip kube-proxy nat-output",
            "ip6 kube-proxy services",
            "ip nat KUBE-SERVICES",
            "ip nat KUBE-SVC-NPX46M4PTMTKRN6Y",
            "ip nat KUBE-SEP-6E7XQMQ4RAYOWTTM",
            "ip filter KUBE-PROXY-FIREWALL",
        ),
        ports=(10256, 10249),
    )
    assert found == Surroundings(
        kube_proxy=(
            "table ip kube-proxy",
            "table ip6 kube-proxy",
            "1 chains KUBE-* in table ip filter",
            "3 chains KUBE-* in table ip nat",
            "link kube-ipvs0 (IPVS)",
        ),
        kube_proxy_ports=(10249, 10256),
    )


@pytest.mark.parametrize(
    "name",
    [
        "KUBE-FIREWALL",
        "KUBE-MARK-MASQ",
        "KUBE-POSTROUTING",
        "KUBE-KUBELET-CANARY",
        "KUBE-IPTABLES-HINT",
        "KUBE-ROUTER-INPUT",
        "KUBE-POD-FW-ABCDEFGHIJKLMNOP",
        "KUBE-NWPLCY-ABCDEFGHIJKLMNOP",
    ],
)
def test_chains_of_kubelet_and_others_are_not_kube_proxys(name: str) -> None:
    assert describe([], chains(f"ip nat {name}")).kube_proxy == ()


HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"
ROW = "   0: {address}:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 0 0 {inode} 1"


def row(port: int, inode: int, state: str = "0A", address: str = "0100007F") -> str:
    return ROW.format(address=address, port=port, state=state, inode=inode)


def test_listeners_of_other_processes_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    four, six = tmp_path / "tcp", tmp_path / "tcp6"
    four.write_text(
        "\n".join([HEADER, row(10249, 5), row(10256, 77), row(22, 6), row(40000, 8, "01"), row(10251, 9)])
    )
    six.write_text("\n".join([HEADER, row(10250, 7, address=32 * "0")]) + "\n")
    monkeypatch.setattr(surroundings, "_TCP_TABLES", (str(four), str(six), str(tmp_path / "none")))
    monkeypatch.setattr(surroundings, "_own_sockets", lambda: frozenset({"77"}))
    assert foreign_listeners({10249, 10250, 10251, 10256}) == (10249, 10250)


def test_our_own_listener_is_no_strangers() -> None:
    with socket.socket() as ours:
        ours.bind(("127.0.0.1", 0))
        ours.listen()
        port = ours.getsockname()[1]
        assert foreign_listeners({port}) == ()
        code = (
            f"import socket; from datapath.surroundings import foreign_listeners as f; print(f({{{port}}}))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout == f"({port},)\n"


def test_one_of_ours_that_is_opened_while_we_look_is_no_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    ours: set[str] = set()

    def listeners(_path: str) -> list[tuple[str, str]]:
        ours.add("77")
        return [("0100007F:2810", "77")]

    monkeypatch.setattr(surroundings, "_listeners", listeners)
    monkeypatch.setattr(surroundings, "_own_sockets", lambda: frozenset(ours))
    assert foreign_listeners({0x2810}) == ()
