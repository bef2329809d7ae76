"""The shim for the architecture that this machine does not have: compiled, and run in emulation."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.e2e.cluster.agent_image import shim
from tests.e2e.cluster.build import BuildError

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.root, pytest.mark.timeout(600)]

ARCHITECTURE, MACHINE, EMULATOR = {
    "x86_64": ("arm64", "AArch64", "qemu-aarch64"),
    "aarch64": ("amd64", "Advanced Micro Devices X86-64", "qemu-x86_64"),
}[os.uname().machine]
CONFIGURATION = b'{"cniVersion":"1.0.0","name":"weft","type":"weft"}'


@pytest.fixture(scope="module")
def program() -> Path:
    try:
        return shim(ARCHITECTURE)
    except BuildError as error:
        pytest.fail(str(error))


def readelf(option: str, program: Path) -> str:
    return subprocess.run(["readelf", option, program], capture_output=True, text=True, check=True).stdout


def test_it_is_a_static_program_of_that_architecture(program: Path) -> None:
    header = readelf("--file-header", program)
    assert f"Machine:                           {MACHINE}" in header
    assert "INTERP" not in readelf("--program-headers", program)
    assert program.stat().st_size < 1 << 20


def test_it_answers_the_runtime(program: Path) -> None:
    if not shutil.which(EMULATOR):
        pytest.skip(f"{EMULATOR} is not on this machine (Debian's qemu-user)")

    def run(command: str) -> dict[str, object]:
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "c1",
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": "/run/netns/none",
            "CNI_PATH": "/opt/cni/bin",
        }
        done = subprocess.run(
            [EMULATOR, program], input=CONFIGURATION, env=environment, capture_output=True, check=False
        )
        answer: dict[str, object] = json.loads(done.stdout)
        return answer

    assert run("VERSION")["supportedVersions"] == ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]
    if not os.path.exists("/run/weft/cni.sock"):
        assert run("ADD")["code"] == 11
