"""The daemon is killed at random moments of a storm of ADDs and DELs; nothing is lost or leaked."""

import asyncio
import random
from collections.abc import Iterable
from ipaddress import ip_address

import pytest

from lab.echo import ask
from lab.errors import LabError
from lab.runtime import PodName, Sandbox
from tests.functional.lab_cluster import LabCluster

pytestmark = pytest.mark.root

NODE = "node-1"
_AT_ONCE = 6
_MOMENTS = 0.08
"""The daemon is killed at most so many seconds after the storm began."""


def test_killed_in_a_storm(lab: LabCluster) -> None:
    storm(lab, rounds=20)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_killed_in_a_long_storm(lab: LabCluster) -> None:
    storm(lab, rounds=200)


def storm(lab: LabCluster, rounds: int) -> None:
    chance = random.Random(20)
    standing: list[Sandbox] = []
    with lab.traffic("pod-1a", "pod-2a") as first, lab.traffic("pod-2b", "pod-1b", 6) as second:
        for number in range(rounds):
            standing = lab.run(_round(lab, number, standing, chance))
            lab.wait(lambda: lab.weftctl(NODE, "status").get("ready"), "the daemon is ready again", 30)
            _check(lab, standing, f"round {number}")
        lab.run(_remove(lab, standing))
    for traffic in (first, second):
        assert traffic.lost == []
        assert not traffic.broken
    _check(lab, [], "the end")


async def _round(lab: LabCluster, number: int, old: list[Sandbox], chance: random.Random) -> list[Sandbox]:
    """Remove the last round's sandboxes and make new ones while the daemon is killed; returns those made."""
    node = lab.node(NODE)
    names = [PodName("storm", f"s{number}-{index}", f"uid-{number}-{index}") for index in range(_AT_ONCE)]

    async def kill() -> None:
        await asyncio.sleep(chance.uniform(0, _MOMENTS))
        await node.daemon.kill()

    killing = asyncio.create_task(kill())
    made = await asyncio.gather(
        *(node.runtime.create(name) for name in names),
        *(node.runtime.remove(sandbox) for sandbox in old),
        return_exceptions=True,
    )
    await killing
    await node.start_daemon()
    for result in made:
        assert result is None or isinstance(result, (Sandbox, LabError)), repr(result)
    removed = made[_AT_ONCE:]
    assert not [error for error in removed if error is not None], (
        "DEL never fails, not even without the daemon"
    )
    return [sandbox for sandbox in made if isinstance(sandbox, Sandbox)]


async def _remove(lab: LabCluster, sandboxes: Iterable[Sandbox]) -> None:
    await asyncio.gather(*(lab.node(NODE).runtime.remove(sandbox) for sandbox in sandboxes))


def _check(lab: LabCluster, standing: list[Sandbox], when: str) -> None:
    """What IPAM holds, the kernel has and the runtime knows is the same."""
    living = dict(lab.call(lambda: dict(lab.node(NODE).runtime.sandboxes)))
    assert {sandbox.container_id for sandbox in standing} <= set(living), when

    def settled() -> bool:
        held = lab.weftctl(NODE, "attachments")["attachments"]
        return {row["containerId"] for row in held} == set(living)

    lab.wait(settled, f"{when}: IPAM holds what the runtime has", 10)
    held = lab.weftctl(NODE, "attachments")["attachments"]
    addresses = [address for row in held for address in row["addresses"]]
    assert len(addresses) == len(set(addresses)) == 2 * len(living), when
    for row in held:
        plain = [address.partition("/")[0] for address in row["addresses"]]
        assert plain == living[row["containerId"]].addresses, when
    links = lab.sh(NODE, "ls /sys/class/net").split()
    veths = {link for link in links if link.startswith("weft") and not link.startswith("weft.")}
    lab.wait(
        lambda: (
            {row["hostLink"] for row in held}
            == {
                link
                for link in lab.sh(NODE, "ls /sys/class/net").split()
                if link.startswith("weft") and "." not in link
            }
        ),
        f"{when}: the kernel has the links of IPAM and no others, not {veths}",
        10,
    )
    assert lab.weftctl(NODE, "ipam", "check")["leaks"] == [], when
    assert lab.weftctl(NODE, "status")["pendingDeletions"] == 0, when
    for sandbox in standing:
        for address in lab.node(NODE).addresses:
            answer = lab.run(ask(sandbox.descriptor, ip_address(address), "udp"))
            assert answer.name == NODE, f"{when}: {answer}"
            assert answer.source in sandbox.addresses, f"{when}: {answer}"
