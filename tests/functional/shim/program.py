"""The shim as a program under test, built with a state directory relative to where it is executed."""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
STATE = "state"
SANITIZER_EXIT = 86

ENVIRONMENT = {
    "CNI_CONTAINERID": "c0ffee",
    "CNI_NETNS": "/var/run/netns/absent",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=web",
    "CNI_PATH": "/opt/cni/bin",
}
SANITIZERS = {
    "ASAN_OPTIONS": f"exitcode={SANITIZER_EXIT}:detect_leaks=0",
    "UBSAN_OPTIONS": f"exitcode={SANITIZER_EXIT}:print_stacktrace=1",
}


def build(directory: Path, *targets: str, state: str = STATE) -> Path:
    """Builds the shim into a directory with another state directory than /run/weft."""
    subprocess.run(
        ["make", "--silent", "-C", ROOT / "shim", f"OUT={directory}", f"STATE_DIRECTORY={state}", *targets],
        check=True,
    )
    return directory


@dataclass(frozen=True)
class Finished:
    """How one execution ended."""

    exit_code: int
    output: bytes
    messages: str
    seconds: float

    @property
    def error(self) -> dict[str, Any]:
        """The CNI error object, after checking that there is exactly one and that the program failed."""
        assert self.exit_code not in (0, SANITIZER_EXIT), self
        assert self.exit_code > 0, f"killed by a signal: {self}"
        decoded = json.loads(self.output)
        assert set(decoded) <= {"cniVersion", "code", "msg", "details"}, decoded
        assert isinstance(decoded["code"], int)
        assert decoded["code"] > 0
        assert decoded["msg"]
        return dict(decoded)


@dataclass(frozen=True)
class Shim:
    """A built shim and the directory it runs in; its socket and tombstones are in `state/` there."""

    binary: Path
    directory: Path

    @property
    def state(self) -> Path:
        return self.directory / STATE

    @property
    def socket(self) -> Path:
        return self.state / "cni.sock"

    @property
    def tombstones(self) -> list[Path]:
        deletions = self.state / "deletions"
        if not deletions.is_dir():
            return []
        return sorted(path for path in deletions.iterdir() if not path.name.startswith("."))

    def arguments(self, command: str, variables: dict[str, str | None]) -> dict[str, Any]:
        merged: dict[str, str | None] = {**ENVIRONMENT, **SANITIZERS, "CNI_COMMAND": command, **variables}
        environment = {name: value for name, value in merged.items() if value is not None}
        return {"cwd": self.directory, "env": environment}

    def run(
        self,
        command: str,
        config: bytes = b'{"cniVersion":"1.0.0","name":"weft"}',
        *,
        name: str = "weft",
        **variables: str | None,
    ) -> Finished:
        """Executes the shim; variables set to None are missing."""
        started = time.monotonic()
        done = subprocess.run(
            [name],
            executable=self.binary,
            input=config,
            capture_output=True,
            timeout=30,
            check=False,
            **self.arguments(command, variables),
        )
        return Finished(
            done.returncode, done.stdout, done.stderr.decode(errors="replace"), time.monotonic() - started
        )

    async def execute(
        self,
        command: str,
        config: bytes = b'{"cniVersion":"1.0.0","name":"weft"}',
        **variables: str | None,
    ) -> Finished:
        """The same without blocking the event loop that serves it."""
        started = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            self.binary,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **self.arguments(command, variables),
        )
        output, messages = await process.communicate(config)
        assert process.returncode is not None
        return Finished(
            process.returncode, output, messages.decode(errors="replace"), time.monotonic() - started
        )


def make_network_namespace(name: str) -> str:
    """Adds a network namespace with iproute2 and returns its path."""
    subprocess.run(["ip", "netns", "add", name], check=True)
    return f"/run/netns/{name}"
