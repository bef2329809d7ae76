"""Builds all that the tests run, before any of them: `python -m tests.e2e.cluster.prepare`, as root.

From nothing it takes a quarter of an hour on two cores, more than a test may take. What is there is kept.
"""

from __future__ import annotations

import sys
import time

from tests.e2e.cluster import build, images, manifests
from tests.e2e.cluster.agent_image import agent_image
from tests.e2e.cluster.build import BuildError
from tests.e2e.cluster.deployment import MANIFEST, image_of
from tests.e2e.cluster.previous import previous_release


def main() -> int:
    """Builds one after the other, and says so; returns the exit code."""
    parts = {
        "Kubernetes": build.kubernetes,
        "containerd": build.containerd,
        "CoreDNS": images.dns_image,
        "pods' image": images.image,
        "agent's image": lambda: agent_image(image_of(manifests.load(MANIFEST))),
        "image of an earlier build": previous_release,
    }
    for name, make in parts.items():
        started = time.monotonic()
        print(f"{name} ...", end=" ", flush=True)
        try:
            make()
        except BuildError as error:
            print(f"failed\n{error}", file=sys.stderr)
            return 1
        print(f"{time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
