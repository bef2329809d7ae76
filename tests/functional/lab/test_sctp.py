"""The lab's SCTP is good enough for the kernel: tracked, translated, refused."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest

from lab.echo import Answer, Bind, Server, ask
from tests.functional.nft.spaces import spaces

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.functional.nft.spaces import Space

pytestmark = pytest.mark.root

CLIENT, SERVER, OTHER = {4: "192.0.2.1", 6: "2001:db8::1"}, {4: "192.0.2.2", 6: "2001:db8::2"}, "198.51.100.1"
RULES = """
table inet t {
	chain output {
		type nat hook output priority -100;
		ip daddr 198.51.100.1 sctp dport 80 dnat to 192.0.2.2:8080
	}
	chain filter {
		type filter hook output priority 0;
		sctp dport 81 reject
		sctp dport 82 drop
		ct state invalid drop
	}
}
"""


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Space, Space]]:
    with spaces("sctp-client", "sctp-server") as (client, server):
        client.ip(f"link add name eth0 type veth peer name eth0 netns {server.name}")
        for space, addresses in ((client, CLIENT), (server, SERVER)):
            space.ip(
                "link set eth0 up",
                f"addr add {addresses[4]}/24 dev eth0",
                f"addr add {addresses[6]}/64 dev eth0 nodad",
            )
        client.ip(f"route add {OTHER} via {SERVER[4]}")
        client.nft(RULES)
        yield client, server


async def test_association(pair: tuple[Space, Space]) -> None:
    client, server = pair
    echo = Server("s")
    await echo.start(server.descriptor, [Bind("sctp", "", 8080)])

    async def answer(address: str, port: int) -> Answer:
        return await ask(client.descriptor, ip_address(address), "sctp", port=port, patience=1.0)

    try:
        for family in (4, 6):
            assert await answer(SERVER[family], 8080) == Answer("s", CLIENT[family])
            assert (await answer(SERVER[family], 8081)).fault == "ECONNREFUSED", "an ABORT"
            assert (await answer(SERVER[family], 81)).fault == "ECONNREFUSED", "an ICMP error"
            assert (await answer(SERVER[family], 82)).fault == "no answer"
        assert await answer(OTHER, 80) == Answer("s", CLIENT[4])
    finally:
        echo.close()
