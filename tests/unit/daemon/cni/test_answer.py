"""What an ADD says of an attachment."""

from __future__ import annotations

import pytest

from daemon.cni import answer
from daemon.cni.result import VERSIONS, Dns
from ipam.record import AttachmentKey, Record

FOUR, SIX = bytes((10, 0, 0, 1)), bytes.fromhex("fd00") + bytes(13) + b"\1"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("addresses", [(FOUR,), (SIX,), (FOUR, SIX), (SIX, FOUR), ()])
@pytest.mark.parametrize("dns", [Dns(), Dns(("10.96.0.10",), "100%s", ("a", "b"), ("ndots:5",))])
def test_the_encoded_answer_is_the_result(version: str, addresses: tuple[bytes, ...], dns: Dns) -> None:
    for ifname, netns in (("eth0", "/run/netns/1"), ('e"\\%s', '/run/\N{SNOWMAN}\0001/%d"\\')):
        key = AttachmentKey("weft", "c1", ifname)
        record = Record(key, netns, "weft0123", b"\2\0\0\0\0\1", 1450, addresses)
        assert answer.encode(record, dns, version) == answer.result(record, dns).to_json(version)
