"""The agent's own rules: an end that should not come is loud, places are where the design says."""

from __future__ import annotations

import asyncio
import time

import pytest

from daemon import agent
from daemon.agent import EndedError, Paths


async def test_a_task_that_should_never_end_and_does_is_an_error() -> None:
    async def short() -> None:
        await asyncio.sleep(0)

    with pytest.raises(EndedError, match="list-watch of nodes ended"):
        await agent._never_ending("list-watch of nodes", short())


async def test_cancelling_such_a_task_is_none() -> None:
    task = asyncio.ensure_future(agent._never_ending("x", asyncio.sleep(60)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_the_places_are_those_of_the_interface() -> None:
    paths = Paths()
    assert (paths.lock, paths.cni_socket, paths.admin_socket, paths.leases, paths.deletions) == (
        "/run/weft/lock",
        "/run/weft/cni.sock",
        "/run/weft/admin.sock",
        "/run/weft/state.db",
        "/run/weft/deletions",
    )


def test_the_age_of_a_process_grows() -> None:
    first = agent.process_age()
    time.sleep(0.01)
    assert 0 < first < agent.process_age() < first + 60
