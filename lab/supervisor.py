"""The process that is the lab: holds its cluster and takes orders on a unix socket until it is told to end.

Started by `weft-lab up`, to which it is tied by its standard input: when that closes before the word
"detach" came, the lab ends. So a lab that is interrupted while it comes up leaves nothing, whatever
interrupted it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

from lab import connectivity
from lab.cluster import Cluster
from lab.errors import LabError
from lab.namespaces import descriptor_path
from lab.options import Options
from lab.state import State

if TYPE_CHECKING:
    from lab.node import Node

log = logging.getLogger(__name__)

_RECORD_SECONDS = 1.0


class Supervisor:
    """Runs one cluster for the processes that ask for it."""

    def __init__(self, options: Options, state: State) -> None:
        self.cluster = Cluster(options)
        self.state = state
        self.since = time.time()
        self.ending = asyncio.Event()

    async def run(self) -> None:
        """Bring the lab up, serve until the end is asked for, take it down."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self.ending.set)
        tie = asyncio.create_task(self._tie())
        recorder = asyncio.create_task(self._record())
        runner = None
        try:
            up = asyncio.create_task(self._up())
            ending = asyncio.create_task(self.ending.wait())
            await asyncio.wait((up, ending), return_when=asyncio.FIRST_COMPLETED)
            if up.done():
                runner = up.result()
                say("up", True)
                await ending
            else:
                up.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    runner = await up
            ending.cancel()
        finally:
            for task in (tie, recorder):
                task.cancel()
            await self.cluster.stop()
            if runner is not None:
                await runner.cleanup()

    async def _up(self) -> web.AppRunner:
        await self.cluster.start(lambda what: say("progress", what))
        await self.cluster.api.start(_listen(self.state.api_socket), faulty=False)
        application = web.Application()
        application.add_routes(
            [
                web.get("/lab", self._show),
                web.get("/target/{node}", self._target_node),
                web.get("/target/{namespace}/{pod}", self._target_pod),
                web.post("/wait", self._wait),
                web.post("/test", self._test),
                web.post("/node/{node}/{action}", self._node),
                web.post("/fault/{fault}", self._fault),
                web.post("/down", self._down),
            ]
        )
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.SockSite(runner, _listen(self.state.control_socket)).start()
        return runner

    async def _tie(self) -> None:
        """End when the process that started us ends, unless it let go of us."""
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
        if await reader.readline() != b"detach\n":
            self.ending.set()

    async def _record(self) -> None:
        recorded: list[int] = [-1]
        while True:
            processes = [node.daemon.pid for node in self.cluster.nodes.values() if node.daemon.pid]
            if processes != recorded:
                self.state.write(processes)
                recorded = processes
            await asyncio.sleep(_RECORD_SECONDS)

    # orders

    async def _show(self, _: web.Request) -> web.Response:
        objects = self.cluster.node_objects()
        unready = self.cluster.unready()
        nodes = [
            {
                "name": name,
                "segment": node.segment.number,
                "addresses": [str(address) for address in node.addresses],
                "podCIDRs": objects.get(name, {}).get("spec", {}).get("podCIDRs", []),
                "daemon": {"pid": node.daemon.pid, "starts": node.daemon.starts},
                "pods": len(node.kubelet.sandboxes),
            }
            for name, node in self.cluster.nodes.items()
        ]
        options = self.cluster.options
        shape = {"family": options.family, "overlay": options.overlay, "segments": options.segments}
        return web.json_response(
            {"pid": os.getpid(), "since": self.since, "nodes": nodes, "unready": unready, **shape}
        )

    def _on(self, request: web.Request) -> Node:
        try:
            return self.cluster.node(request.match_info["node"])
        except LabError as error:
            raise web.HTTPNotFound(text=str(error)) from error

    async def _target_node(self, request: web.Request) -> web.Response:
        if request.match_info["node"] == "outside":
            paths = {"net": descriptor_path(self.cluster.underlay.outside)}
            return web.json_response({"paths": paths, "net": ""})
        node = self._on(request)
        return web.json_response({"paths": node.namespaces.paths(), "net": "", "log": str(node.log_file)})

    async def _target_pod(self, request: web.Request) -> web.Response:
        namespace, name = request.match_info["namespace"], request.match_info["pod"]
        try:
            sandbox = self.cluster.sandbox(namespace, name)
        except LabError as error:
            raise web.HTTPNotFound(text=str(error)) from error
        for node in self.cluster.nodes.values():
            if sandbox.container_id in node.runtime.sandboxes:
                paths = node.namespaces.paths()
                return web.json_response({"paths": paths, "net": descriptor_path(sandbox.descriptor)})
        raise web.HTTPNotFound(text=f"pod {namespace}/{name} is gone")

    async def _wait(self, request: web.Request) -> web.Response:
        try:
            await self.cluster.wait_ready(float(request.query.get("seconds", "60")))
        except LabError as error:
            raise web.HTTPServiceUnavailable(text=str(error)) from error
        return web.json_response({})

    async def _test(self, request: web.Request) -> web.StreamResponse:
        """Run the matrix; one JSON line with the number of probes, then one for each outcome as it comes."""
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        probes = connectivity.plan(self.cluster)
        outcomes: asyncio.Queue[connectivity.Outcome] = asyncio.Queue()
        await response.write(json.dumps({"probes": len(probes)}).encode() + b"\n")
        async with asyncio.TaskGroup() as group:
            group.create_task(connectivity.run(probes, outcomes.put_nowait))
            for _ in probes:
                await response.write(json.dumps((await outcomes.get()).row()).encode() + b"\n")
        return response

    async def _node(self, request: web.Request) -> web.Response:
        node = self._on(request)
        match request.match_info["action"]:
            case "start":
                await node.start_daemon()
            case "stop":
                await node.daemon.stop()
            case "kill":
                await node.daemon.kill()
            case "reboot":
                await node.reboot()
            case "attract":
                await self.cluster.attract(node.name)
            case action:
                raise web.HTTPNotFound(text=f"no such action: {action}")
        return web.json_response({})

    async def _fault(self, request: web.Request) -> web.Response:
        api = self.cluster.api
        match request.match_info["fault"]:
            case "down":
                await api.stop()
            case "hang":
                api.faults.hang = True
            case "forget":
                self.cluster.storage.forget()
                api.drop_watches()
            case "drop-watches":
                api.drop_watches()
            case "none":
                api.faults.hang, api.faults.status = False, 0
                if not api.serving:
                    await self.cluster.serve_api()
            case number if number.isdigit():
                api.faults.status = int(number)
            case fault:
                raise web.HTTPNotFound(text=f"no such fault: {fault}")
        return web.json_response({})

    async def _down(self, _: web.Request) -> web.Response:
        self.ending.set()
        return web.json_response({})


def _listen(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    sock.bind(str(path))
    path.chmod(0o600)
    sock.listen(64)
    return sock


def say(key: str, value: Any) -> None:
    """Tell the process that started us; it may have gone."""
    with contextlib.suppress(OSError, ValueError):
        print(json.dumps({key: value}), flush=True)


def encode_options(options: Options) -> str:
    """Options as JSON, for the command line of the lab's process."""
    return json.dumps(dataclasses.asdict(options), default=str)


def decode_options(text: str) -> Options:
    """The reverse of `encode_options`."""
    values = json.loads(text)
    for name in ("cluster_cidrs", "slice_lengths", "service_cidrs"):
        values[name] = {int(family): value for family, value in values[name].items()}
    values["state"], values["shim"] = Path(values["state"]), Path(values["shim"])
    values["plugins"] = tuple(Path(plugin) for plugin in values["plugins"])
    values["daemon"], values["zones"] = tuple(values["daemon"]), tuple(values["zones"])
    return Options(**values)


def main() -> None:
    """Run the lab that the first argument describes."""
    options = decode_options(sys.argv[1])
    state = State(options.state)
    try:
        state.acquire()
    except LabError as error:
        say("error", str(error))
        sys.exit(1)
    # Whoever started us may wait for the end of our standard error.
    with open(options.state / "lab.log", "ab") as output:
        os.dup2(output.fileno(), sys.stderr.fileno())
    logging.basicConfig(
        level="INFO",
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    try:
        asyncio.run(_run(options, state))
    except (LabError, OSError) as error:
        log.exception("the lab failed")
        say("error", str(error))
        sys.exit(1)
    finally:
        state.release()


async def _run(options: Options, state: State) -> None:
    await Supervisor(options, state).run()


if __name__ == "__main__":
    main()
