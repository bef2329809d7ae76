"""The demonstration: a lab with pods, what weftctl says of it, the connectivity matrix, and the end of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lab import manifests, tables
from lab.client import Client, Launch
from lab.errors import LabError
from lab.namespaces import enter_command
from lab.service_tour import ASKS, tour
from lab.state import State

if TYPE_CHECKING:
    from rich.console import Console

    from lab.options import Options

_READY_SECONDS = 60.0
_LOG_LINES = 8
_FOUND_SOMETHING = 1
"""Exit status of weftctl that found something worth a look: its output says what."""


def run_matrix(client: Client, console: Console) -> list[dict[str, Any]]:
    """Run the connectivity matrix with a progress bar, show its tables and return the outcomes."""
    outcomes: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("probing", total=None)

        def count(row: dict[str, Any]) -> None:
            outcomes.append(row)
            progress.advance(bar)

        client.test(lambda total: progress.update(bar, total=total), count)
    if outcomes:
        console.print(tables.matrix(outcomes))
        console.print()
        console.print(tables.roads(outcomes))
    return outcomes


def demonstrate(options: Options, pods_per_node: int, console: Console, *, keep: bool) -> None:
    """Everything from start to end; LabError when anything is not as it must be."""
    begin = time.monotonic()

    def step(what: str) -> None:
        console.print(f"[dim]{time.monotonic() - begin:5.1f} s[/]  {what}", highlight=False)

    with Launch(options) as launch:
        launch.wait_up(lambda _: None)
        step(f"{options.nodes} nodes started, each with a weftd of its own")
        state = State(options.state)
        client = Client(state)
        try:
            _show(pods_per_node, console, client, step)
        except LabError:
            _show_logs(state, console)
            raise
        if keep:
            launch.detach()
    step("lab kept: `weft-lab down` ends it" if keep else "lab down, all green")


def _show(pods_per_node: int, console: Console, client: Client, step: Any) -> None:
    client.order("POST", f"/wait?seconds={_READY_SECONDS}")
    shown = client.order("GET", "/lab")
    names = [node["name"] for node in shown["nodes"]]
    step("all nodes Ready")
    pods = manifests.demo_pods(names, pods_per_node)
    for pod in pods:
        client.api("POST", "/api/v1/namespaces/default/pods", json=pod)
    client.order("POST", f"/wait?seconds={_READY_SECONDS}")
    step(f"{len(pods)} pods Running")
    console.print(tables.objects(client.api("GET", "/api/v1/pods")["items"], "Pod", namespaces=False))
    console.print()
    for command in (["status"], ["nodes"]):
        console.print(f"[bold]{names[0]}# weftctl {' '.join(command)}")
        console.print(weftctl(client, names[0], *command), highlight=False, markup=False)
    outcomes = run_matrix(client, console)
    console.print()
    step(f"{len(outcomes)} probes done")
    faults = tables.faults(outcomes)
    replies = tour(client, shown["nodes"][0], [pod["metadata"]["name"] for pod in pods])
    console.print(tables.tour(replies))
    console.print()
    console.print(f"[bold]{names[0]}# weftctl services")
    console.print(weftctl(client, names[0], "services"), highlight=False, markup=False)
    step(f"{ASKS * len(replies)} questions to Services")
    faults += [
        f"{reply.question.client} asks {reply.question.what} at {reply.question.address}: {reply.fault}"
        for reply in replies
        if reply.fault
    ]
    for name in names:
        differences = json.loads(weftctl(client, name, "diff", "-o", "json"))
        if (
            differences := differences.get("differences", [])
            if isinstance(differences, dict)
            else differences
        ):
            faults.append(f"{name}: the kernel differs from the desired state: {differences}")
    step("weftctl diff: kernels compared with the desired state")
    if faults or not outcomes:
        raise LabError("\n  ".join(["the cluster is not as it must be:", *faults]))


def weftctl(client: Client, node: str, *arguments: str) -> str:
    """What weftctl prints on a node; LabError when it fails."""
    program = str(Path(sys.executable).with_name("weftctl"))
    found = client.order("GET", f"/target/{node}")
    line = enter_command(found["paths"], program, *arguments)
    try:
        done = subprocess.run(
            line,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env={**os.environ, "COLUMNS": "110"},
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"weftctl {' '.join(arguments)} on {node} does not answer") from error
    if done.returncode not in (0, _FOUND_SOMETHING):
        raise LabError(
            f"weftctl {' '.join(arguments)} on {node} failed: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout


def _show_logs(state: State, console: Console) -> None:
    """The last lines of each daemon, as the lab's files go with it."""
    for file in sorted(state.directory.glob("node-*.log")):
        lines = file.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        if lines:
            console.print(f"[bold]{file.name}[/] (last {len(lines)} lines)")
            console.print("\n".join(lines), markup=False, highlight=False)
