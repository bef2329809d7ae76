"""For any pod, the templates give what the encoders give message by message."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from datapath import podmessages
from datapath.attachment import AttachRequest, host_objects_of
from datapath.desired import LinkAddress, Neighbour, Route
from datapath.netlink.addresses import new_address
from datapath.netlink.links import VethPair, address_family_settings, new_veth, set_link
from datapath.netlink.neighbours import learned_neighbour, new_neighbour
from datapath.netlink.routes import get_route, new_route
from datapath.netlink.template import Template
from datapath.netlink.transport import Message, frame
from datapath.podmessages import GATEWAYS

indexes = st.integers(1, 2**31 - 1)
sequences = st.integers(1, 2**32 - 100)
macs = st.binary(min_size=6, max_size=6)
names = st.text("abcz019.-_%ä", min_size=1, max_size=7) | st.text("weft0%", min_size=15, max_size=15)
families = st.sampled_from([(4,), (16,), (4, 16), (16, 4)])
requests = st.builds(
    AttachRequest,
    netns=st.just("/run/netns/pod"),
    ifname=names,
    host_link=names,
    mac=macs,
    host_mac=macs,
    mtu=st.integers(68, 65535),
    addresses=families.flatmap(lambda sizes: st.tuples(*(st.binary(min_size=n, max_size=n) for n in sizes))),
    sources=(families | st.just(())).flatmap(
        lambda sizes: st.tuples(*(st.binary(min_size=n, max_size=n) for n in sizes))
    ),
    alias=st.text("weft1 ä%", max_size=120),
)


@given(requests, indexes, sequences)
def test_the_pair_is_what_its_encoder_gives(request: AttachRequest, namespace: int, first: int) -> None:
    template, values = podmessages.pair(request, namespace)
    links = (request.host_link, request.host_mac, request.ifname, request.mac, namespace, request.mtu)
    assert template.number == 1
    assert template.fill(first, values) == frame([new_veth(VethPair(*links))], first, 0)


@given(requests, indexes, sequences)
def test_the_pods_side_is_what_the_encoders_give(request: AttachRequest, index: int, first: int) -> None:
    template, values = podmessages.pod_side(request, index)
    messages = [set_link(1, up=True)]
    for address in request.addresses:
        messages.append(new_address(LinkAddress("", address, 8 * len(address)), index, prefix_route=False))
    messages.append(set_link(index, up=True, settings=address_family_settings({22: 1})))
    for size in map(len, request.addresses):
        gateway = GATEWAYS[size]
        if size == 4:
            messages.append(new_route(Route(gateway, 32, ""), index, protocol=3))
        messages.append(new_route(Route(bytes(size), 0, "", gateway=gateway), index, protocol=3))
        messages.append(new_neighbour(Neighbour("", gateway, request.host_mac), index))
    messages += [get_route(address) for address in request.addresses if len(address) == 16]
    assert template.number == len(messages)
    assert template.fill(first, values) == frame(messages, first, len(messages) - 1)


@given(requests, indexes, sequences, st.booleans())
def test_the_nodes_side_is_what_the_encoders_give_for_its_objects(
    request: AttachRequest, index: int, first: int, on_loopback: bool
) -> None:
    lead = podmessages.host_lead(request, index, on_loopback=on_loopback)
    template, values = podmessages.host_side(request, index)
    places = {1: 1, 26: 1} if on_loopback else {1: 1}
    settings = address_family_settings(places, ipv6_link_local=False)
    messages = [set_link(index, alias=request.alias, settings=settings), set_link(index, up=True)]
    for each in host_objects_of(request.host_link, request.addresses, request.sources):
        if isinstance(each, LinkAddress):
            messages.append(new_address(each, index, prefix_route=False, link_scope=True))
        elif isinstance(each, Route):
            messages.append(new_route(each, index))
    for address in request.addresses:
        messages.append(learned_neighbour(Neighbour("", address, request.mac), index))
    whole = frame(lead, first, None) + template.fill(first + 1, values)
    assert template.number == len(messages) - 1
    assert whole == frame(messages, first, len(messages) - 1)


@given(st.lists(st.integers(0, 4), max_size=12), st.integers(0, 2**32 - 1), st.binary(min_size=3, max_size=3))
def test_fields_stand_anywhere_side_by_side_or_nowhere(order: list[int], number: int, word: bytes) -> None:
    def make(integer: int, three: bytes, other: int) -> list[Message]:
        parts = (integer.to_bytes(4, "little"), three, b"\1\2\3A", b"", other.to_bytes(4, "little"))
        return [Message(7, 0x10, b"".join(parts[each] for each in order)), Message(8, 0, three)]

    template = Template(make, ("I", "3s", "I"))
    assert template.fill(9, (number, word, 5)) == frame(make(number, word, 5), 9, 1)
