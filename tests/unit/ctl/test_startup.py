"""weftctl as a process: it starts fast because it imports little, and prints bare text into a pipe."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
HEAVY = (
    "grpc",
    "rich",
    "yaml",
    "sqlite3",
    "google.protobuf",
    "asyncio",
    "datapath",
    "ipam",
    "importlib.metadata",
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )


def test_the_commands_are_known_without_importing_what_they_need() -> None:
    result = run(
        "-c", f"import sys, ctl.__main__; print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert result.stdout.strip() == "[]"


def test_help_names_every_command_and_the_exit_codes() -> None:
    result = run("-m", "ctl", "--help")
    assert result.returncode == 0
    for word in (
        "status",
        "attachments",
        "ipam",
        "nodes",
        "diff",
        "completion",
        "3 the daemon cannot be reached",
    ):
        assert word in " ".join(result.stdout.split())


def test_down_is_said_without_grpc(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom ctl.__main__ import cli\n"
        f"try: cli(['--socket', '{tmp_path}/x', 'status'], prog_name='weftctl')\n"
        "except SystemExit as ended: print(ended.code, 'grpc' in sys.modules)"
    )
    result = run("-c", code)
    assert result.stdout == "3 False\n"
    assert result.stderr.startswith("Error: weftd is not reachable at")
