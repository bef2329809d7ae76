"""Inside one node of a lab: times ADD and DEL of Weft and of other plugins as a runtime sees them.

Run by `bench.cni` in the node's namespaces; prints one JSON object. Every variant executes its program with
environment and standard input as a runtime does, in network namespaces made beforehand.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Any

PEERS = "/usr/lib/cni"
"""Where Debian's containernetworking-plugins are."""
WEFT = "/opt/cni/bin"
SOCKET = "/run/weft/cni.sock"
PARALLEL_BATCHES = 4
RANGES = {
    "ipv4": [[{"subnet": "10.200.0.0/16"}]],
    "dual": [[{"subnet": "10.200.0.0/16"}], [{"subnet": "fd20::/64"}]],
}
ROUTES = {"ipv4": [{"dst": "0.0.0.0/0"}], "dual": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}
SETTLE_SECONDS = 0.15
"""After each pod's end: meanwhile the kernel destroys its namespace and links, not during the next ADD."""
SETTLE_BURST_SECONDS = 1.0
_names = count()
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to attach a pod."""

    name: str
    program: str
    config: dict[str, Any]


def variants(family: str) -> list[Variant]:
    """Weft, and the reference plugins with host-local, for pods of the same families."""
    ipam = {"type": "host-local", "ranges": RANGES[family], "routes": ROUTES[family]}
    return [
        Variant("weft", f"{WEFT}/weft", {"type": "weft", "name": "weft"}),
        Variant(
            "ptp", f"{PEERS}/ptp", {"type": "ptp", "name": "ptp", "ipam": {**ipam, "dataDir": "/run/ptp"}}
        ),
        Variant(
            "bridge",
            f"{PEERS}/bridge",
            {
                "type": "bridge",
                "name": "bridge",
                "bridge": "bench0",
                "isGateway": True,
                "ipam": {**ipam, "dataDir": "/run/bridge"},
            },
        ),
    ]


class Sandbox:
    """A network namespace with a name, as runtimes make them."""

    def __init__(self) -> None:
        self.container = f"bench{os.getpid()}x{next(_names)}"
        self.path = f"/run/netns/{self.container}"
        with open(self.path, "x", encoding="ascii"):
            pass
        thread = threading.Thread(target=self._make)
        thread.start()
        thread.join()

    def _make(self) -> None:
        if _libc.unshare(0x40000000) != 0:  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), "unshare")
        if _libc.mount(b"/proc/thread-self/ns/net", self.path.encode(), None, 0x1000, None) != 0:  # MS_BIND
            raise OSError(ctypes.get_errno(), "mount")

    def remove(self) -> None:
        """Unmounts and removes it; the kernel destroys it when nothing is in it."""
        _libc.umount2(self.path.encode(), 2)  # MNT_DETACH
        os.unlink(self.path)


def execute(variant: Variant, command: str, sandbox: Sandbox) -> float:
    """Runs the plugin once and returns the milliseconds until its exit; raises when it fails."""
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": sandbox.container,
        "CNI_NETNS": sandbox.path,
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME=pod",
        "CNI_PATH": f"{WEFT}:{PEERS}",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    config = json.dumps({"cniVersion": "1.0.0", **variant.config}).encode()
    begin = time.perf_counter()
    done = subprocess.run([variant.program], input=config, env=environment, capture_output=True, check=False)
    seconds = time.perf_counter() - begin
    if done.returncode != 0:
        raise RuntimeError(
            f"{variant.name} {command}: {(done.stdout + done.stderr).decode(errors='replace')}"
        )
    return seconds * 1000


def one_by_one(family: str, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Times ADD and DEL of each variant in turn, so that all see the same machine."""
    chosen = variants(family)
    times: dict[str, dict[str, list[float]]] = {each.name: {"ADD": [], "DEL": []} for each in chosen}
    for number in range(rounds):
        for variant in chosen[number % len(chosen) :] + chosen[: number % len(chosen)]:
            sandbox = Sandbox()
            try:
                times[variant.name]["ADD"].append(execute(variant, "ADD", sandbox))
                times[variant.name]["DEL"].append(execute(variant, "DEL", sandbox))
            finally:
                sandbox.remove()
            time.sleep(SETTLE_SECONDS)
    return times


def start_cost(rounds: int) -> list[float]:
    """Times the start of a program that does nothing: what no plugin can be below."""
    times = []
    for _ in range(rounds):
        begin = time.perf_counter()
        subprocess.run(["/bin/true"], input=b"", env={}, capture_output=True, check=True)
        times.append((time.perf_counter() - begin) * 1000)
    return times


def burst(number: int, commands: tuple[str, ...] = ("ADD", "DEL")) -> list[float]:
    """Attaches and detaches many pods at once from one gRPC client; returns the seconds of each command.

    Without DEL the namespaces stay, with their pods.
    """
    from bench.unary_client import call_all
    from weft_rpc import cni_pb2

    sandboxes = [Sandbox() for _ in range(number)]
    config = json.dumps({"cniVersion": "1.0.0", "name": "weft", "type": "weft"}).encode()
    seconds = []
    try:
        for command in commands:
            requests = [
                cni_pb2.ExecuteRequest(
                    command=command,
                    container_id=sandbox.container,
                    netns=sandbox.path,
                    ifname="eth0",
                    path=WEFT,
                    config=config,
                ).SerializeToString()
                for sandbox in sandboxes
            ]
            taken, answers = call_all(SOCKET, "/weft.cni.v1.Cni/Execute", requests)
            for answer in map(cni_pb2.ExecuteResponse.FromString, answers):
                if answer.exit_code != 0:
                    raise RuntimeError(f"{command}: {answer.output.decode(errors='replace')}")
            seconds.append(taken)
    finally:
        for sandbox in sandboxes if "DEL" in commands else ():
            sandbox.remove()
    return seconds


def batches(family: str, number: int) -> float:
    """Wires as many pods by `ip -batch`, four at a time, two processes for each; returns the seconds."""
    sandboxes = [Sandbox() for _ in range(number)]

    def wire(position: int) -> None:
        name = sandboxes[position].container
        host, address = f"b{position}", f"10.201.{position // 250}.{position % 250 + 1}"
        outside = [
            f"link add {host} mtu 1450 type veth peer name eth0 netns {name} mtu 1450",
            f"link set {host} address ee:ee:ee:ee:ee:ee up",
            f"address add 169.254.1.1/32 dev {host} scope link",
            f"route add {address}/32 dev {host}",
        ]
        inside = [
            "link set lo up",
            "link set eth0 up",
            f"address add {address}/32 dev eth0",
            "neighbour add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent",
            "route add 169.254.1.1 dev eth0 scope link",
            "route add default via 169.254.1.1 dev eth0",
        ]
        if family == "dual":
            address6 = f"fd21::{position + 1:x}"
            outside += [f"address add fe80::1/64 dev {host} nodad", f"route add {address6}/128 dev {host}"]
            inside += [
                f"address add {address6}/128 dev eth0 nodad",
                "neighbour add fe80::1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent",
                "route add default via fe80::1 dev eth0",
            ]
        for command, lines in ((["ip"], outside), (["ip", "-n", name], inside)):
            subprocess.run([*command, "-batch", "-"], input="\n".join(lines), text=True, check=True)

    try:
        begin = time.perf_counter()
        with ThreadPoolExecutor(PARALLEL_BATCHES) as pool:
            list(pool.map(wire, range(number)))
        return time.perf_counter() - begin
    finally:
        script = "".join(f"link delete b{position}\n" for position in range(number))
        subprocess.run(
            ["ip", "-force", "-batch", "-"], input=script, text=True, check=False, capture_output=True
        )
        for sandbox in sandboxes:
            sandbox.remove()


def main() -> None:
    """Measures as the arguments say (families, rounds, pods at once, how often), or only attaches pods."""
    family, *numbers = sys.argv[1:]
    if family == "attach":
        burst(int(numbers[0]), ("ADD",))
        return
    rounds, pods, bursts = map(int, numbers)
    result: dict[str, Any] = {
        "true": start_cost(rounds),
        "one": one_by_one(family, rounds),
        "burst": [],
        "batches": [],
    }
    for _ in range(bursts):
        result["burst"].append(burst(pods))
        time.sleep(SETTLE_BURST_SECONDS)
        result["batches"].append(batches(family, pods))
        time.sleep(SETTLE_BURST_SECONDS)
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
