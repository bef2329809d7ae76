from __future__ import annotations

from bench import policy_objects as objects
from daemon.cluster import decode_pods, decode_policies


def test_the_daemon_understands_what_is_measured_with() -> None:
    pods = [decode_pods.pod(objects.pod(number)) for number in range(1000)]
    assert {len(each.ips) for each in pods} == {2}
    assert len({address for each in pods for address in each.ips}) == 2000
    assert len({each.key for each in pods}) == 1000
    for peer in (objects.inside, objects.everywhere):
        policy = decode_policies.network_policy(objects.policy(7, peer))
        assert not policy.faults
        assert policy.ingress is not None


def test_this_node_has_a_pod_of_each_namespace() -> None:
    pods = [decode_pods.pod(objects.pod(number)) for number in range(1000)]
    assert [each.namespace for each in pods if each.node == objects.NODE] == [
        objects.space(number) for number in range(objects.NAMESPACES)
    ]


def test_a_policy_lets_in_a_workload_that_there_is() -> None:
    """Otherwise a changed label would change nothing in the kernel."""
    (first,) = (decode_policies.network_policy(objects.policy(0, objects.inside)).ingress or ())[:1]
    (peer,) = first.peers or ()
    remote = decode_pods.pod(objects.pod(objects.RESIDENTS))
    assert remote.namespace == objects.space(0)
    assert peer.pods.matches(remote.labels)  # type: ignore[union-attr]
    assert not peer.pods.matches(decode_pods.pod(objects.pod(objects.RESIDENTS, "other")).labels)  # type: ignore[union-attr]
