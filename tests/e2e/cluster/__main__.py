"""Keeps a cluster with Weft up for a developer: `python -m tests.e2e.cluster [NODES]`, as root."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys

from tests.e2e.cluster.cluster import DIRECTORY, running


def main() -> None:
    """Brings the cluster up, says how to use it, and takes it away at the end."""
    # A shell starts background jobs with SIGINT ignored, and a service manager ends them with SIGTERM.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    nodes = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    with contextlib.suppress(KeyboardInterrupt), running(nodes) as cluster:
        cluster.install_weft()
        print(f"Ready. Logs and file systems are in {DIRECTORY}.")
        print(f"  kubeconfig   {cluster.control.authority.directory}/administrator.kubeconfig")
        print("  its server   ip netns exec weft-e2e kubectl --kubeconfig=... get nodes")
        for node in cluster.nodes.values():
            command = shlex.join(str(word) for word in node.inside("/bin/bash"))
            print(f"  a shell on {node.name}: {command}")
        print("Ctrl-C takes it all away.", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
