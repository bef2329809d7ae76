"""Pod links among all the links of a real namespace."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from datapath import podlinks
from datapath.attachment import DOOMED_GROUP
from datapath.netlink.transport import Socket

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root


@pytest.fixture
def namespace() -> Iterator[str]:
    name = f"weft-t-podlinks-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True)


def test_pod_links_are_told_from_others(namespace: str) -> None:
    script = (
        "link add weft0123456789a type veth peer name p0\n"
        "link set weft0123456789a alias one\n"
        "link add weft0123456789b type veth peer name p1\n"
        f"link set weft0123456789b group {DOOMED_GROUP}\n"
        "link add weft.x type veth peer name p2\n"
        "link add weft0123456789 type veth peer name p3\n"
        "link add weft0123456789c type bridge\n"
    )
    subprocess.run(["ip", "-n", namespace, "-batch", "-"], input=script, text=True, check=True)
    descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        with Socket(namespace=descriptor) as host:
            assert podlinks.read(host) == {"weft0123456789a": "one"}
    finally:
        os.close(descriptor)
