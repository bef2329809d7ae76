from __future__ import annotations

from ipaddress import ip_address, ip_network

from bench import service_objects as objects
from daemon.cluster import decode_services


def test_the_daemon_understands_what_is_measured_with() -> None:
    service = decode_services.service(objects.service(30_000))
    each = decode_services.endpoint_slice(objects.endpoint_slice(30_000, objects.endpoints_of(30_000)))
    assert each.service_key == service.key
    assert len(each.endpoints) == objects.ENDPOINTS
    assert not service.faults
    assert not each.faults
    assert ip_address(objects.cluster_ip(30_000)) in ip_network(objects.SERVICE_CIDR)


def test_no_two_services_share_an_endpoint() -> None:
    found = [address for number in range(1000) for address in objects.endpoints_of(number)]
    assert len(set(found)) == len(found)


def test_replacing_a_pod_changes_one_address_to_one_that_nobody_had() -> None:
    before = objects.endpoints_of(7)
    for replaced in range(1, 12):
        after = objects.endpoints_of(7, replaced=replaced)
        assert sum(one != other for one, other in zip(before, after, strict=True)) == 1
        assert set(after) - set(before) == {next(each for each in after if each not in before)}
    assert objects.endpoints_of(7, replaced=1) != objects.endpoints_of(7, replaced=6)
