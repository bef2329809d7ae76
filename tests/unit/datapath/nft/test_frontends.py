"""The elements of each kind of balance, written out as the chains of `datapath.nft.services` read them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from datapath.nft import frontends
from datapath.nft.elements import key, prefix
from datapath.nft.frontends import (
    MOST_BACKENDS,
    NODE_PORT_PREFIX,
    OUTSIDE_SLOT,
    TABLE,
    Absence,
    Backend,
    Balance,
    Frontend,
    Need,
    Snat,
    need,
    service_elements,
)
from datapath.nft.rules import Family, Protocol
from datapath.nft.services import ServiceOptions
from datapath.nft.tables import TableOptions, node_tables

if TYPE_CHECKING:
    from collections.abc import Mapping

VIP, VIP6 = bytes([10, 96, 0, 1]), bytes.fromhex("fd0096") + bytes(12) + b"\x01"
POD, POD6 = bytes([10, 244, 1, 7]), bytes.fromhex("fd000244") + bytes(11) + b"\x07"
A, B, C = (Backend(bytes([10, 244, 1, last]), 8080) for last in (1, 2, 3))
FRONTEND = Frontend(Family.IPV4, VIP, Protocol.TCP, 80)
NODE_PORT = Frontend(Family.IPV4, None, Protocol.TCP, 30080)


def number(value: int) -> bytes:
    return struct.pack("=I", value)


def port(value: int) -> bytes:
    return struct.pack("!H", value)


def place(address: bytes | None = VIP, protocol: int = 6, number: int = 80) -> bytes:
    return key(*([address] if address is not None else []), bytes([protocol]), port(number))


def found(frontend: Frontend, balance: Balance) -> dict[str, Mapping[bytes, bytes]]:
    """The elements of one frontend by set; all in the frontend's own table."""
    elements = service_elements({frontend: balance})
    assert {each.table for each in elements} == {(int(frontend.family), TABLE)}
    assert len({each.name for each in elements}) == len(elements)
    return {each.name: each.elements for each in elements}


def test_a_frontend_is_a_word_and_its_backends_in_slots() -> None:
    assert found(FRONTEND, Balance((A, B), Snat.FOREIGN)) == {
        "services": {place(): number(0x20002)},
        "endpoints": {
            key(place(), number(0)): key(A.address, port(8080)),
            key(place(), number(1)): key(B.address, port(8080)),
        },
    }


@pytest.mark.parametrize(
    ("balance", "word"),
    [
        (Balance((A,)), 0x00001),
        (Balance((A,), Snat.ALWAYS), 0x10001),
        (Balance((A,), Snat.FOREIGN), 0x20001),
        (Balance((A,), outside=(A,)), 0x40001),
        (Balance((A, B), affinity_seconds=60), 0x80002),
        (Balance((A, B, C), Snat.ALWAYS, outside=(), affinity_seconds=60), 0xD0003),
    ],
)
def test_flags_are_in_the_upper_half_of_the_word(balance: Balance, word: int) -> None:
    assert found(FRONTEND, balance)["services"] == {place(): number(word)}


@pytest.mark.parametrize("protocol", Protocol)
def test_the_protocol_is_part_of_the_key(protocol: Protocol) -> None:
    balance = Balance((A,))
    assert found(FRONTEND._replace(protocol=protocol), balance)["services"] == {
        place(protocol=protocol): number(1)
    }


def test_ipv6_goes_to_the_other_table() -> None:
    frontend = Frontend(Family.IPV6, VIP6, Protocol.UDP, 53)
    assert found(frontend, Balance((Backend(POD6, 5353),))) == {
        "services": {place(VIP6, 17, 53): number(1)},
        "endpoints": {key(place(VIP6, 17, 53), number(0)): key(POD6, port(5353))},
    }


def test_a_node_port_has_sets_of_its_own_and_no_address() -> None:
    balance = Balance((A,), outside=(B,), affinity_seconds=60)
    names = {"services", "endpoints", "outside", "timeouts", "endpoint-ids", "sticky"}
    sets = found(NODE_PORT, balance)
    assert sets.keys() == {NODE_PORT_PREFIX + name for name in names}
    where = place(None, number=30080)
    assert sets["node-port-services"] == {where: number(0xC0001)}
    assert sets["node-port-endpoints"] == {
        key(where, number(0)): key(A.address, port(8080)),
        key(where, number(OUTSIDE_SLOT)): key(B.address, port(8080)),
    }


@pytest.mark.parametrize(("absence", "name"), [(Absence.REFUSE, "refused"), (Absence.DROP, "dropped")])
@pytest.mark.parametrize("frontend", [FRONTEND, NODE_PORT])
def test_nobody_serves(frontend: Frontend, absence: Absence, name: str) -> None:
    twin = NODE_PORT_PREFIX if frontend.address is None else ""
    where = place(frontend.address, number=frontend.port)
    balance = Balance((), Snat.ALWAYS, absence=absence, affinity_seconds=60)
    assert found(frontend, balance) == {twin + name: {where: b""}}


def test_a_backend_with_the_frontends_address_is_noted() -> None:
    """The kernel does not say of a connection that is translated to itself that it was translated."""
    same = Backend(VIP, 80)
    assert found(FRONTEND, Balance((A, same)))["identical"] == {place(): b""}
    for others in ((A,), (Backend(VIP, 8080),), (Backend(A.address, 80),)):
        assert "identical" not in found(FRONTEND, Balance(others))
    # A node port may be at any address.
    assert "identical" not in {*found(NODE_PORT, Balance((A,))), *found(FRONTEND, Balance(()))}
    where = place(None, number=30080)
    assert found(NODE_PORT, Balance((Backend(POD, 30080),)))["node-port-identical"] == {where: b""}


def test_outsiders_have_slots_of_their_own() -> None:
    sets = found(FRONTEND, Balance((A, B, C), outside=(C,)))
    assert sets["services"] == {place(): number(0x40003)}
    assert sets["outside"] == {place(): number(1)}
    assert sets["endpoints"].keys() == {key(place(), number(slot)) for slot in (0, 1, 2, OUTSIDE_SLOT)}
    assert sets["endpoints"][key(place(), number(OUTSIDE_SLOT))] == key(C.address, port(8080))
    assert "dropped" not in sets


def test_outsiders_are_dropped_where_none_is_for_them() -> None:
    sets = found(FRONTEND, Balance((A,), outside=()))
    assert sets["services"] == {place(): number(0x40001)}
    assert sets["dropped"] == {place(): b""}
    assert "outside" not in sets


def test_affinity_numbers_the_backends() -> None:
    sets = found(FRONTEND, Balance((A, B), affinity_seconds=90))
    assert sets["timeouts"] == {place(): number(90)}
    ids = sets["endpoint-ids"]
    assert ids.keys() == sets["endpoints"].keys()
    # What a slot leads to and what its number leads to are one backend.
    for slot, backend in sets["endpoints"].items():
        assert sets["sticky"][place() + ids[slot]] == backend
    assert len(sets["sticky"]) == 2


def ids(*backends: Backend, outside: tuple[Backend, ...] | None = None) -> dict[bytes, set[bytes]]:
    """The numbers of each backend."""
    sets = found(FRONTEND, Balance(backends, outside=outside, affinity_seconds=90))
    numbers: dict[bytes, set[bytes]] = {}
    for slot, backend in sets["endpoints"].items():
        numbers.setdefault(backend, set()).add(sets["endpoint-ids"][slot])
    return numbers


def test_a_backend_keeps_its_number_when_others_come_and_go() -> None:
    before = ids(A, B, C)
    assert len({one for each in before.values() for one in each}) == 3
    for others in ((A, C), (B, C), (A, B, C, Backend(bytes([10, 244, 9, 9]), 1))):
        after = ids(*others)
        for backend in before.keys() & after.keys():
            assert after[backend] == before[backend]


def test_outsiders_numbers_are_no_others() -> None:
    """A client from outside must not find the backend of before alive because pods still have it."""
    numbers = ids(A, B, outside=(B,))
    lowest = {
        backend: sorted(struct.unpack("=I", each)[0] & 1 for each in found)
        for backend, found in numbers.items()
    }
    assert lowest == {key(A.address, port(8080)): [0], key(B.address, port(8080)): [0, 1]}


@pytest.mark.parametrize("checksum", [7, 0xFFFFFFFF])
def test_numbers_that_collide_are_told_apart(monkeypatch: pytest.MonkeyPatch, checksum: int) -> None:
    monkeypatch.setattr(frontends, "crc32", lambda _: checksum)
    numbers = ids(A, B, outside=(A, B, C))
    assert [len(each) for each in numbers.values()] == [2, 2, 1]
    assert len(set().union(*numbers.values())) == 5


def test_more_backends_than_the_word_can_count() -> None:
    many = tuple(Backend(index.to_bytes(4, "big"), 1) for index in range(MOST_BACKENDS + 2))
    sets = found(FRONTEND, Balance(many, Snat.ALWAYS, outside=many))
    assert sets["services"] == {place(): number(0x40000 | 0x10000 | MOST_BACKENDS)}
    assert sets["outside"] == {place(): number(MOST_BACKENDS)}
    assert len(sets["endpoints"]) == 2 * MOST_BACKENDS
    assert need([Balance(many, outside=many)]).sizes == {MOST_BACKENDS}


def test_source_ranges_are_intervals_of_place_and_source() -> None:
    ranges = (prefix(bytes([192, 0, 2, 0]), 24), prefix(bytes([203, 0, 113, 9]), 32))
    sets = found(FRONTEND, Balance((A,), sources=ranges))
    assert sets["firewalled"] == {place(): b""}
    assert sets["allowed"] == {
        key(place(), bytes([192, 0, 2, 0])) + key(place(), bytes([192, 0, 2, 255])): b"",
        key(place(), bytes([203, 0, 113, 9])) * 2: b"",
    }


def test_no_range_admits_nobody_and_none_everybody() -> None:
    closed = found(FRONTEND, Balance((A,), sources=()))
    assert closed["firewalled"] == {place(): b""}
    assert not closed.get("allowed")
    assert found(FRONTEND, Balance((A,))).keys() == {"services", "endpoints"}


def test_node_ports_have_no_source_ranges() -> None:
    sets = found(NODE_PORT, Balance((A,), sources=()))
    assert sets.keys() == {"node-port-services", "node-port-endpoints"}


def test_a_service_is_one_map_per_set_and_family() -> None:
    balances = {
        FRONTEND: Balance((A,), Snat.FOREIGN),
        FRONTEND._replace(port=443): Balance((B,), Snat.FOREIGN),
        NODE_PORT: Balance((A,), Snat.ALWAYS),
        Frontend(Family.IPV6, VIP6, Protocol.TCP, 80): Balance((Backend(POD6, 80),)),
    }
    elements = service_elements(balances, cluster_ips=[VIP, VIP6])
    sets = {each.key: each.elements for each in elements}
    assert len(sets) == len(elements)
    assert sets[2, TABLE, "services"].keys() == {place(), place(number=443)}
    assert sets[2, TABLE, "cluster-ips"] == {VIP: b""}
    assert sets[10, TABLE, "cluster-ips"] == {VIP6: b""}
    assert sets[10, TABLE, "services"].keys() == {place(VIP6)}


@pytest.mark.parametrize(("family", "address", "backend"), [(0, VIP, POD), (1, VIP6, POD6)])
def test_every_element_is_as_wide_as_its_set_says(family: int, address: bytes, backend: bytes) -> None:
    table = node_tables(TableOptions(services=ServiceOptions(timeouts=(60,))))[family]
    balance = Balance(
        (Backend(backend, 1), Backend(address, 1)),
        Snat.ALWAYS,
        outside=(Backend(backend, 1),),
        affinity_seconds=60,
        sources=(prefix(address, 8),),
    )
    balances = {
        Frontend(table.family, where, 6, number): each
        for where in (address, None)
        for number, each in (
            (1, balance),
            (2, Balance((), absence=Absence.DROP)),
            (3, Balance(())),
        )
    }
    elements = service_elements(balances, cluster_ips=[address])
    assert len(elements) == 2 * 9 + 3
    for each in elements:
        declared = table.set(each.name)
        width = sum(-(-one.size // 4) * 4 for one in declared.key) * (2 if declared.interval else 1)
        assert {len(one) for one in each.elements} == {width}
        data = sum(-(-one.size // 4) * 4 for one in declared.data)
        assert {len(one) for one in each.elements.values()} == {data}


def test_need_names_sizes_and_timeouts() -> None:
    assert need([]) == Need()
    assert need([Balance(()), Balance((), affinity_seconds=0)]) == Need()
    wanted = need(
        [
            Balance((A, B, C), outside=(A,), affinity_seconds=60),
            Balance((A, B), outside=()),
            Balance((A, B), affinity_seconds=10800),
        ]
    )
    assert wanted == Need(frozenset({1, 2, 3}), frozenset({60, 10800}))
