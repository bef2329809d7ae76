"""Which endpoints serve whom: readiness, terminating ones, topology, locality, joins of slices."""

from __future__ import annotations

import itertools

import pytest

from daemon.compile import endpoints
from daemon.compile.endpoints import Site, anywhere, here, local_ready, serving
from datapath.nft.frontends import Backend
from tests.unit.daemon.compile.shop import SITE, addresses, backends, port, slice_

PORT = port("http:tcp:80")


def found(*texts: str, site: Site = SITE) -> endpoints.Found:
    return endpoints.find([slice_(*texts)], PORT, 4, site)


def test_ready_endpoints_serve_everybody_sorted() -> None:
    each = found("10.0.0.9", "10.0.0.2@here", "10.0.0.5 unready", "10.0.0.6 lingering")
    assert anywhere(each, SITE) == backends("10.0.0.2 10.0.0.9")


def test_if_nobody_is_ready_those_serve_that_terminate_and_still_can() -> None:
    each = found("10.0.0.1 unready", "10.0.0.2 lingering", "10.0.0.3 dying", "10.0.0.4@here lingering")
    assert anywhere(each, SITE) == backends("10.0.0.2 10.0.0.4")
    assert here(each, SITE) == backends("10.0.0.4")


def test_who_serves_without_being_ready_or_terminating_is_no_fallback() -> None:
    """A failed readiness gate: not ready, serving, not terminating."""
    ((backend, endpoint),) = found("10.0.0.1").items()
    assert anywhere({backend: endpoint._replace(ready=False)}, SITE) == ()


def test_ready_endpoints_of_a_service_that_publishes_unready_ones_serve() -> None:
    assert anywhere(found("10.0.0.1 unheard"), SITE) == backends("10.0.0.1")


def test_local_endpoints_are_those_of_this_node() -> None:
    each = found("10.0.0.1@here", "10.0.0.2", "10.0.0.3@here lingering", "10.0.0.4@here unready")
    assert here(each, SITE) == backends("10.0.0.1")


def test_ready_endpoints_elsewhere_do_not_stand_in_for_local_ones() -> None:
    each = found("10.0.0.1", "10.0.0.2@here lingering")
    assert here(each, SITE) == backends("10.0.0.2")
    assert anywhere(each, SITE) == backends("10.0.0.1")


def test_nobody() -> None:
    for each in (found(), found("10.0.0.1@here dying"), found("10.0.0.1@here unready")):
        assert (anywhere(each, SITE), here(each, SITE)) == ((), ())


def test_zone_hints_for_this_zone_narrow_the_choice() -> None:
    each = found("10.0.0.1 zone=west", "10.0.0.2 zone=east", "10.0.0.3 zone=east,west")
    assert anywhere(each, SITE) == backends("10.0.0.1 10.0.0.3")
    assert anywhere(each, Site("here", "east")) == backends("10.0.0.2 10.0.0.3")


@pytest.mark.parametrize("zone", ["north", ""])
def test_zone_hints_for_others_only_mean_everybody(zone: str) -> None:
    each = found("10.0.0.1 zone=west", "10.0.0.2 zone=east")
    assert anywhere(each, Site("here", zone)) == backends("10.0.0.1 10.0.0.2")


def test_zone_hints_count_only_if_every_ready_endpoint_has_one() -> None:
    each = found("10.0.0.1 zone=west", "10.0.0.2")
    assert anywhere(each, SITE) == backends("10.0.0.1 10.0.0.2")
    each = found("10.0.0.1 zone=west", "10.0.0.2 zone=east", "10.0.0.3 unready", "10.0.0.4 lingering")
    assert anywhere(each, SITE) == backends("10.0.0.1")


def test_hints_of_endpoints_that_are_not_ready_attract_nobody() -> None:
    each = found("10.0.0.1 zone=west lingering", "10.0.0.2 zone=east")
    assert anywhere(each, SITE) == backends("10.0.0.2")


def test_node_hints_come_before_zone_hints() -> None:
    each = found("10.0.0.1 node=here zone=west", "10.0.0.2 node=there zone=west")
    assert anywhere(each, SITE) == backends("10.0.0.1")


def test_without_a_node_hint_for_this_node_zone_hints_count() -> None:
    each = found("10.0.0.1 node=there zone=west", "10.0.0.2 node=elsewhere zone=east")
    assert anywhere(each, SITE) == backends("10.0.0.1")


def test_node_hints_count_only_if_every_ready_endpoint_has_one() -> None:
    each = found("10.0.0.1 node=here zone=west", "10.0.0.2 zone=west")
    assert anywhere(each, SITE) == backends("10.0.0.1 10.0.0.2")


def test_topology_is_no_matter_for_terminating_endpoints() -> None:
    each = found("10.0.0.1 zone=west lingering", "10.0.0.2 zone=east lingering")
    assert anywhere(each, SITE) == backends("10.0.0.1 10.0.0.2")


def test_topology_is_no_matter_for_local_endpoints() -> None:
    each = found("10.0.0.1@here zone=east", "10.0.0.2 zone=west")
    assert here(each, SITE) == backends("10.0.0.1")


def test_a_named_target_port_may_differ_per_slice() -> None:
    slices = [
        slice_("10.0.0.1", ports="http:tcp:8080"),
        slice_("10.0.0.2", ports="admin:tcp:1 http:tcp:9090", name="web-2"),
    ]
    assert anywhere(endpoints.find(slices, PORT, 4, SITE), SITE) == (
        *backends("10.0.0.1", 8080),
        *backends("10.0.0.2", 9090),
    )


def test_slices_are_joined_by_name_and_protocol_of_the_port() -> None:
    slices = [slice_("10.0.0.1", ports="http:udp:80 other:tcp:80")]
    assert not endpoints.find(slices, PORT, 4, SITE)


def test_slices_of_the_other_family_and_of_names_are_ignored() -> None:
    slices = [slice_("fd00::1"), slice_("10.0.0.1", name="web-2")]
    assert anywhere(endpoints.find(slices, PORT, 4, SITE), SITE) == backends("10.0.0.1")
    assert anywhere(endpoints.find(slices, PORT, 6, SITE), SITE) == backends("fd00::1")


def test_of_an_endpoint_that_is_in_several_slices_the_local_entry_counts() -> None:
    entries = ["10.0.0.1@there", "10.0.0.1@here"]
    for order in itertools.permutations(entries):
        slices = [slice_(text, name=f"web-{number}") for number, text in enumerate(order)]
        each = endpoints.find(slices, PORT, 4, SITE)
        assert here(each, SITE) == anywhere(each, SITE) == backends("10.0.0.1")


def test_of_an_endpoint_that_moves_between_slices_the_ready_entry_counts() -> None:
    entries = ["10.0.0.1 dying", "10.0.0.1", "10.0.0.1 lingering"]
    for order in itertools.permutations(entries):
        slices = [slice_(text, name=f"web-{number}") for number, text in enumerate(order)]
        assert anywhere(endpoints.find(slices, PORT, 4, SITE), SITE) == backends("10.0.0.1")


def test_one_address_with_two_ports_is_two_endpoints() -> None:
    slices = [slice_("10.0.0.1", ports="http:tcp:1 http:tcp:2")]
    (address,) = addresses("10.0.0.1")
    each = endpoints.find(slices, PORT, 4, SITE)
    assert anywhere(each, SITE) == (Backend(address, 1), Backend(address, 2))
    assert local_ready(each, Site("there")) == 1


def test_who_may_go_on_answering_flows() -> None:
    each = found(
        "10.0.0.1",
        "10.0.0.2 lingering",
        "10.0.0.3 dying",
        "10.0.0.4 unready",
        "10.0.0.5 unheard",
        "10.0.0.6 zone=east",
    )
    assert serving(each) == set(backends("10.0.0.1 10.0.0.2 10.0.0.5 10.0.0.6"))


def test_health_checks_count_ready_endpoints_of_this_node() -> None:
    each = found("10.0.0.1@here", "10.0.0.2@here", "10.0.0.3@here lingering", "10.0.0.4")
    assert local_ready(each, SITE) == 2
