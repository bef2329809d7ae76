from __future__ import annotations

from bench import policy_packets
from daemon.cluster.decode_policies import network_policy


def test_nodes_with_policies_are_compared_with_none_round_by_round() -> None:
    none = [1.0, 2.0, 4.0] * 4
    measured = {
        policy_packets.BASE: none,
        "1000 policies": [1.2 * each for each in none],
        policy_packets.CROWDED: none,
    }
    rows = policy_packets.against_none("round trip", measured, bounded=True).rows
    assert rows[0] == ("1000 policies", "1.200", "1.200 to 1.200", "<= 1.1", "BROKEN")
    assert rows[1][3:] == ("", "")
    assert policy_packets.against_none("connect", measured, bounded=False).rows[0][3:] == ("", "")


def test_the_policy_that_allows_is_the_last_that_is_asked() -> None:
    assert not policy_packets.policies(0)
    for crowded in (False, True):
        found = [network_policy(each) for each in policy_packets.policies(1000, crowded=crowded)]
        assert len({each.key for each in found}) == 1000
        own = [each.key for each in found if each.namespace == "space-0"]
        assert len(own) == (1000 if crowded else 11)
        assert max(own) == found[-1].key
        assert not any(each.faults for each in found)
