"""What follows from an attachment's key."""

from __future__ import annotations

from daemon.cni.naming import is_host_link, names
from ipam.record import AttachmentKey

KEY = AttachmentKey("weft", "c1", "eth0")


def test_the_names_are_those_of_earlier_versions() -> None:
    """A daemon of this version must find the links that one before it made."""
    assert names(KEY) == ("weft15243bec35f", bytes.fromhex("4afe93ca8582"))


def test_each_part_of_the_key_counts() -> None:
    keys = [KEY, KEY._replace(network="x"), KEY._replace(container_id="c2"), KEY._replace(ifname="eth1")]
    # And parts don't run into each other.
    keys.append(AttachmentKey("weft", "c", "1eth0"))
    assert len({names(key)[0] for key in keys}) == len({names(key)[1] for key in keys}) == 5


def test_mac_addresses_are_locally_administered_unicast() -> None:
    for number in range(200):
        _, mac = names(KEY._replace(container_id=f"c{number}"))
        assert len(mac) == 6
        assert mac[0] & 0b11 == 0b10


def test_host_links_are_told_from_our_other_links_and_foreign_ones() -> None:
    assert is_host_link(names(KEY)[0])
    for other in (
        "weft.vxlan",
        "weft.vxlan6",
        "weft0",
        "weft0123456789",
        "weft0123456789ab",
        "weft0123456789G",
        "cni0",
    ):
        assert not is_host_link(other)
