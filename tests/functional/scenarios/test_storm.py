"""The daemon is killed at random moments of a storm of ADDs and DELs; nothing is lost or leaked."""

import asyncio
import contextlib
import os
import random
from collections.abc import Iterable, Iterator
from ipaddress import ip_address

import grpc
import pytest

from lab.echo import ask
from lab.errors import LabError
from lab.runtime import PodName, Sandbox
from tests.functional.lab_cluster import LabCluster
from weft_rpc import admin_pb2
from weft_rpc.admin_pb2_grpc import AdminStub

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
            with _admin(lab) as admin:
                _check(lab, admin, standing, f"round {number}")
        lab.run(_remove(lab, standing))
    for traffic in (first, second):
        assert traffic.lost == []
        assert not traffic.broken
    with _admin(lab) as admin:
        _check(lab, admin, [], "the end")


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


@contextlib.contextmanager
def _admin(lab: LabCluster) -> Iterator[AdminStub]:
    """The daemon's admin service once it is ready; weftctl takes longer to start than this to ask."""
    path = f"/proc/{lab.node(NODE).daemon.pid}/root/run/weft/admin.sock"

    def ready() -> bool:
        with contextlib.suppress(grpc.RpcError):
            return bool(stub.Status(admin_pb2.StatusRequest(), timeout=1).ready)
        return False

    lab.wait(lambda: os.path.exists(path), "the daemon has its admin socket", 30)
    with grpc.insecure_channel(f"unix:{path}") as channel:
        stub = AdminStub(channel)  # type: ignore[no-untyped-call]
        lab.wait(ready, "the daemon is ready again", 30)
        yield stub


def _check(lab: LabCluster, admin: AdminStub, standing: list[Sandbox], when: str) -> None:
    """What IPAM holds, the kernel has and the runtime knows is the same."""
    living = dict(lab.call(lambda: dict(lab.node(NODE).runtime.sandboxes)))
    assert {sandbox.container_id for sandbox in standing} <= set(living), when

    def attachments() -> list[admin_pb2.Attachment]:
        return list(admin.ListAttachments(admin_pb2.ListAttachmentsRequest()).attachments)

    def veths() -> set[str]:
        links = lab.sh(NODE, "ls /sys/class/net").split()
        return {link for link in links if link.startswith("weft") and not link.startswith("weft.")}

    settled = f"{when}: IPAM holds what the runtime has"
    lab.wait(lambda: {row.container_id for row in attachments()} == set(living), settled, 10)
    held = attachments()
    addresses = [address for row in held for address in row.addresses]
    assert len(addresses) == len(set(addresses)) == 2 * len(living), when
    for row in held:
        plain = [address.partition("/")[0] for address in row.addresses]
        assert plain == living[row.container_id].addresses, when
    owned = {row.host_link for row in held}
    lab.wait(lambda: veths() == owned, f"{when}: the kernel has the links of IPAM and no others", 10)
    assert not admin.CheckIpam(admin_pb2.CheckIpamRequest()).leaks, when
    assert admin.Status(admin_pb2.StatusRequest()).pending_deletions == 0, when
    for sandbox in standing:
        for address in lab.node(NODE).addresses:
            answer = lab.run(ask(sandbox.descriptor, ip_address(address), "udp"))
            assert answer.name == NODE, f"{when}: {answer}"
            assert answer.source in sandbox.addresses, f"{when}: {answer}"
