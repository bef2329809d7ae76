"""Runs the benches that are named, or all: `python -m bench [name ...]`.

Each bench is a module of this package with `run()`, which yields tables. What goes wrong in one is printed
in its place, and the others run.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
import traceback
from typing import TYPE_CHECKING

from bench.tables import render

if TYPE_CHECKING:
    from collections.abc import Sequence

BENCHES = {
    "pods": "one pod's wiring, alone and fifty at once, against the kernel's floor and `ip -batch`",
    "inside": "one ADD and DEL inside the daemon, and fifty at once, against the kernel's floor",
    "nodes": "thousands of remote nodes joining, one changing, an unchanged resync",
    "flows": "stale UDP flows deleted among 50,000, against the program conntrack",
    "policy-model": "NetworkPolicies of a large cluster in the model: memory and computing, no kernel",
    "policies": "NetworkPolicies inside the daemon: first, created, labels changed, up to 10,000 pods",
    "policy-packets": "a packet's way to an isolated pod with 0, 100 and 1,000 policies on the node",
    "service-changes": "Services inside the daemon: first load, one change, resync, repair, up to 30,000",
    "first-packet": "a new connection to a ClusterIP among 10, 10,000 and 30,000 Services",
    "services": "Services from the API to what a connection sees, against the real kube-proxy",
    "cni": "ADD and DEL as a runtime sees them, against reference plugins",
    "memory": "the daemon's memory at rest and at scale",
    "cluster": "from a write to the API to new connections, on the real cluster of tests/e2e",
    "startup": "from the daemon's start until it is ready",
}


def module_of(name: str) -> str:
    """Return the module that holds a bench."""
    return f"bench.{name.replace('-', '_')}"


def main(names: Sequence[str]) -> None:
    """Run and print."""
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        print(f"There is no bench {', '.join(unknown)}. There are:")
        for name, purpose in BENCHES.items():
            print(f"  {name:15} {purpose}")
        return
    if os.geteuid() != 0:
        print("The benches need root for network namespaces: sudo make bench")
        return
    for name in names or BENCHES:
        started = time.monotonic()
        print(f"\n== {name}: {BENCHES[name]}", flush=True)
        try:
            for table in importlib.import_module(module_of(name)).run():
                print(render(table), flush=True)
        except ModuleNotFoundError as error:
            print(f"(not measured: {error})")
        except Exception:  # noqa: BLE001 - a bench that breaks must not hide the others' results
            traceback.print_exc()
        print(f"({time.monotonic() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
