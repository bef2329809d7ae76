"""What links say of attachments; that a lost database is rebuilt from it is in test_attachments."""

from __future__ import annotations

from dataclasses import replace

from daemon.cni.links import aliases, records_of, with_ports
from daemon.cni.naming import names
from datapath.attachment import DOOMED_GROUP
from datapath.nft.hostports import HostPort
from ipam import alias
from ipam.ports import PortMapping
from ipam.record import AttachmentKey, Record, State
from tests.unit.daemon.cni.fakes import FakeLink

KEY = AttachmentKey("weft", "c1", "eth0")
LINK, MAC = names(KEY)
V4, V6 = bytes((10, 0, 0, 2)), b"\xfd" + bytes(14) + b"\x02"
RECORD = Record(
    KEY, "/run/netns/1", LINK, MAC, 1450, (V4, V6), "default", "web", state=State.ATTACHED, created=7
)


def link(name: str = LINK, text: str | None = None) -> FakeLink:
    return FakeLink(name, ("", ""), alias=alias.write(RECORD) if text is None else text)


def test_only_hosts_ends_that_are_in_use_count() -> None:
    other, doomed = link("weft00000000001", ""), link("weft00000000002")
    doomed.group = DOOMED_GROUP
    foreign = [
        replace(link(), kind="dummy"),
        replace(link(), name="weft.vxlan"),
        replace(link(), name="eth0"),
    ]
    assert aliases([link(), other, doomed, *foreign]) == {LINK: alias.write(RECORD), "weft00000000001": ""}
    assert records_of([doomed, *foreign], 7) == ([], [])


def test_an_alias_gives_the_record_back() -> None:
    assert records_of([link()], 7) == ([RECORD], [])


def test_no_alias_is_nothing_and_a_wrong_one_a_problem() -> None:
    found = records_of([link(text=""), link(text="weft1 nonsense"), link("weft00000000001")], 7)
    assert found[0] == []
    assert [problem.split(":")[0] for problem in found[1]] == [
        f"link {LINK}",
        "link weft00000000001 has the alias of another link",
    ]


def test_host_ports_are_those_of_the_records_addresses() -> None:
    web, dns = HostPort(bytes(4), 6, 80, 8080), HostPort(bytes(16), 17, 53, 53)
    (found,) = with_ports([RECORD], {V6: (dns,), V4: (web,), bytes(4): (dns,)})
    assert found == replace(RECORD, ports=(PortMapping(*web), PortMapping(*dns)))
