"""Kernel features are tried for real, leave nothing behind, and what is missing is named."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading

import pytest

from datapath import probe
from datapath.errors import NetlinkError
from datapath.nft.tables import TableOptions
from datapath.probe import missing_features

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True)
def root() -> None:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")


def test_this_kernel_has_everything_and_the_trial_leaves_nothing() -> None:
    links = socket.if_nameindex()
    namespace = os.readlink("/proc/thread-self/ns/net")
    threads = set(threading.enumerate())
    assert missing_features(TableOptions()) == ()
    assert socket.if_nameindex() == links
    assert os.readlink("/proc/thread-self/ns/net") == namespace
    assert not set(threading.enumerate()) - threads


def test_each_failed_trial_is_named_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise NetlinkError(95, "a VXLAN link can't be created", detail="Unknown device type")

    monkeypatch.setattr(probe, "_vxlan", fail)
    (feature,) = missing_features(TableOptions())
    assert feature.name == "VXLAN links"
    assert feature.option == "CONFIG_VXLAN"
    assert "Unknown device type" in feature.error


def test_without_the_capability_it_says_so() -> None:
    code = (
        "import os\nfrom datapath.probe import missing_features\n"
        "from datapath.nft.tables import TableOptions\nos.setuid(65534)\n"
        "print(missing_features(TableOptions())[0].purpose)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "CAP_SYS_ADMIN is missing" in done.stdout


LOOK = """
import sys
from datapath.netlink.transport import NETLINK_NETFILTER, Socket
from datapath.surroundings import observe
with Socket(NETLINK_NETFILTER) as netfilter:
    found = observe(netfilter)
print(found.leftovers, found.dropping, found.firewalld, found.kube_proxy, found.kube_proxy_ports, sep="|")
"""
MAKE = """
ip link add cni0 type bridge
nft add table ip filter
nft add chain ip filter FORWARD '{ type filter hook forward priority 0; policy drop; }'
nft add chain ip filter INPUT '{ type filter hook input priority 0; policy drop; }'
nft add chain ip filter FLANNEL-FWD
nft add table inet firewalld
nft add chain inet firewalld filter_FORWARD
nft add table ip6 kube-proxy
nft add chain ip6 kube-proxy services
nft add chain ip filter KUBE-SVC-NPX46M4PTMTKRN6Y
ip link set lo up
python3 -c 'import socket, time; held = socket.create_server(("127.0.0.1", 10249)); time.sleep(20)' &
trap "kill $!" EXIT
for _ in $(seq 100); do ss -Hltn | grep -q 10249 && break; sleep 0.05; done
"$@"
"""


def test_surroundings_are_read_from_the_kernel() -> None:
    command = ["unshare", "--net", "sh", "-ec", MAKE, "sh", sys.executable, "-c", LOOK]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    leftovers, dropping, firewalld, kube_proxy, ports = done.stdout.strip().split("|")
    assert "link cni0" in leftovers
    assert "1 chains FLANNEL-*" in leftovers
    assert dropping == "('ip filter FORWARD',)"
    assert firewalld == "True"
    assert kube_proxy == "('table ip6 kube-proxy', '1 chains KUBE-* in table ip filter')"
    assert ports == "(10249,)"


def test_an_empty_namespace_has_no_surroundings() -> None:
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", LOOK], capture_output=True, text=True, check=True
    )
    assert done.stdout == "{}|()|False|()|()\n"
