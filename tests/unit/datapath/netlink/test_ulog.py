"""Messages of nfnetlink_log, byte by byte: no library at hand knows them."""

from __future__ import annotations

import pytest

from datapath.errors import NetlinkFormatError
from datapath.netlink.attributes import attribute, string, u32
from datapath.netlink.nfnetlink import header
from datapath.netlink.ulog import ULOG_CONFIG, ULOG_PACKET, bind, decode_packet


def test_kinds_are_those_of_the_header() -> None:
    assert (ULOG_PACKET, ULOG_CONFIG) == (0x400, 0x401)


def test_binding() -> None:
    message = bind(1193, 128)
    assert message.kind == ULOG_CONFIG
    assert message.payload == bytes.fromhex(
        "000004a9"  # struct nfgenmsg: no family, version 0, the group
        "0500010001000000"  # NFULA_CFG_CMD: NFULNL_CFG_CMD_BIND, padded
        "0a0002000000008002000000"  # NFULA_CFG_MODE: range, NFULNL_COPY_PACKET, pad; padded
        "0800050000000001"  # NFULA_CFG_QTHRESH: send every packet at once
    )  # fmt: skip


def test_a_packet_has_prefix_and_content() -> None:
    rest = attribute(1, bytes.fromhex("08000200")) + u32(4, 7)
    payload = header(2, 1193) + rest + string(10, "weft-policy ingress") + attribute(9, b"\x45abc")
    assert decode_packet(payload) == ("weft-policy ingress", b"\x45abc")


def test_a_packet_without_prefix_is_somebody_elses() -> None:
    assert decode_packet(header(2) + attribute(9, b"\x45")).prefix == ""


def test_a_packet_without_content_is_none() -> None:
    with pytest.raises(NetlinkFormatError):
        decode_packet(header(2) + string(10, "x"))
