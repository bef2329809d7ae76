import pytest

from lab.sctp import Chunk, crc32c, decode, encode

INIT = Chunk(40000, 80, 0, 1, 0x01020304)
ACK = Chunk(80, 40000, 0x01020304, 2, 1, b"server-1 10.244.0.2\n")
ABORT = Chunk(80, 40000, 0x01020304, 6)


@pytest.mark.parametrize(
    ("data", "value"),
    [(b"123456789", 0xE3069283), (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (b"", 0)],
)
def test_the_checksum_is_that_of_the_standards_examples(data: bytes, value: int) -> None:
    """RFC 3720, B.4, and the check value of the CRC catalogue."""
    assert crc32c(data) == value


@pytest.mark.parametrize("chunk", [INIT, ACK, ABORT])
def test_packets_survive_the_wire(chunk: Chunk) -> None:
    packet = encode(chunk)
    assert len(packet) % 4 == 0
    assert decode(packet) == chunk


@pytest.mark.parametrize("position", [0, 5, 9, 13, 20])
def test_a_damaged_packet_is_none(position: int) -> None:
    packet = bytearray(encode(ACK))
    packet[position] ^= 1
    assert decode(bytes(packet)) is None


def test_other_packets_are_none() -> None:
    assert decode(b"") is None
    assert decode(encode(INIT)[:-4]) is None
    assert decode(encode(INIT._replace(kind=10))) is None
