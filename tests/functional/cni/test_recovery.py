"""What survives a daemon's death, with the real shim, daemon and kernel."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from lab.runtime import PodName

if TYPE_CHECKING:
    from lab.runtime import Sandbox
    from tests.functional.lab_cluster import LabCluster

pytestmark = pytest.mark.root

NODE = "node-1"


def create(lab: LabCluster, *names: str) -> list[Sandbox]:
    runtime = lab.node(NODE).runtime

    async def all_of_them() -> list[Sandbox]:
        return list(
            await asyncio.gather(*(runtime.create(PodName("t", name, f"uid-{name}")) for name in names))
        )

    return lab.run(all_of_them())


def remove(lab: LabCluster, sandboxes: list[Sandbox]) -> None:
    async def all_of_them() -> None:
        await asyncio.gather(*(lab.node(NODE).runtime.remove(sandbox) for sandbox in sandboxes))

    lab.run(all_of_them())


def held(lab: LabCluster) -> set[str]:
    return {row["containerId"] for row in lab.weftctl(NODE, "attachments").get("attachments", [])}


def ready(lab: LabCluster) -> None:
    lab.wait(lambda: lab.weftctl(NODE, "status").get("ready"), "the daemon is ready", 30)


def test_deletions_of_while_it_was_dead_are_done_on_its_return(lab: LabCluster) -> None:
    sandboxes = create(lab, "a", "b", "c")
    lab.run(lab.node(NODE).daemon.kill())
    remove(lab, sandboxes)
    assert len(lab.sh(NODE, "ls /run/weft/deletions").split()) == 3
    lab.run(lab.node(NODE).start_daemon())
    ready(lab)
    assert held(lab).isdisjoint(sandbox.container_id for sandbox in sandboxes)
    assert lab.sh(NODE, "ls /run/weft/deletions") == ""
    for sandbox in sandboxes:
        assert not [one for one in sandbox.addresses if one in lab.sh(NODE, "ip route; ip -6 route")]


def test_a_deletion_recorded_late_is_done_while_it_serves(lab: LabCluster) -> None:
    """A shim that could not wait for the lock writes when the daemon has drained already."""
    (sandbox,) = create(lab, "late")
    lab.run(lab.node(NODE).daemon.kill())
    remove(lab, [sandbox])
    lab.sh(NODE, "mv /run/weft/deletions/* /run/weft/.tombstone")
    lab.run(lab.node(NODE).start_daemon())
    ready(lab)
    lab.sh(NODE, "mv /run/weft/.tombstone /run/weft/deletions/0000000001.000000000-1-0")
    lab.wait(lambda: lab.sh(NODE, "ls /run/weft/deletions") == "", "the tombstone is gone", 5)
    lab.wait(lambda: sandbox.container_id not in held(lab), "the attachment is gone", 5)


def test_sandboxes_that_die_without_a_deletion_are_collected_at_start(lab: LabCluster) -> None:
    dead, living = create(lab, "dead", "living")
    lab.run(lab.node(NODE).daemon.kill())
    lab.call(lambda: lab.node(NODE).runtime.drop(dead))
    lab.wait(lambda: dead.netns not in lab.sh(NODE, "ip -d link"), "the kernel removed the namespace", 5)
    lab.run(lab.node(NODE).start_daemon())
    ready(lab)
    lab.wait(lambda: dead.container_id not in held(lab), "the dead attachment is collected", 40)
    assert living.container_id in held(lab)
    remove(lab, [living])


def test_a_daemon_that_hangs_answers_nothing_and_loses_nothing(lab: LabCluster) -> None:
    """SIGSTOP: connections are accepted by the kernel, so the shim's own deadlines count."""
    (sandbox,) = create(lab, "hanging")
    pid = lab.sh(NODE, "cat /run/weft/lock").strip()
    lab.sh(NODE, f"kill -STOP {pid}")
    try:
        with pytest.raises(Exception, match="code 50"):
            lab.run(lab.node(NODE).runtime.status())
        remove(lab, [sandbox])
    finally:
        lab.sh(NODE, f"kill -CONT {pid}")
    lab.wait(lambda: sandbox.container_id not in held(lab), "the attachment is gone", 20)
    lab.wait(lambda: lab.sh(NODE, "ls /run/weft/deletions") == "", "nothing waits", 10)
