"""Checks of the house itself: how files are named, sized, described and tested, and what they may call."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("daemon", "datapath", "ipam", "ctl", "lab")
SOURCES = sorted(
    path
    for package in (*PACKAGES, "bench")
    for path in (ROOT / package).rglob("*.py")
    if "__pycache__" not in path.parts
)
TESTS = sorted(path for path in (ROOT / "tests").rglob("*.py") if "__pycache__" not in path.parts)
MAX_LINES = 600
FORBIDDEN_NAMES = ("manager", "handler", "helper", "util", "common", "misc")
MAKE_TARGETS = (
    "install",
    "demo",
    "test",
    "lint",
    "unit",
    "functional",
    "e2e",
    "soak",
    "bench",
    "shim",
    "proto",
    "lock",
)

_OWNER = "an object with start and stop, which cancels and awaits its own task"
RAW_TASKS: dict[str, str] = {
    "daemon/cni/server.py": "a call ends with its answer or its client; stop awaits the others or ends them",
    "lab/api/server.py": _OWNER,
    "lab/cluster.py": _OWNER,
    "lab/daemon_process.py": _OWNER,
    "lab/node.py": _OWNER,
    "lab/supervisor.py": "awaits whichever of two comes first, and ends both",
}
"""Files that may start a task outside a TaskGroup, each with the reason."""

TESTED_ELSEWHERE: dict[str, str] = {}
"""Modules that no test imports, each with what tests it."""


def relative(path: Path) -> str:
    """Names a file by its path in the repository."""
    return path.relative_to(ROOT).as_posix()


@functools.cache
def tree(path: Path) -> ast.Module:
    """Parses a file once for all checks."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def in_packages(*packages: str) -> list[Path]:
    """Selects the source files of some top-level packages."""
    return [path for path in SOURCES if path.relative_to(ROOT).parts[0] in packages]


def dotted(node: ast.expr) -> str:
    """Renders `a.b.c`; an expression that is no plain path becomes a question mark."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return "?"


def calls(path: Path) -> list[tuple[str, int]]:
    """Lists what a file calls, as dotted text with the line."""
    return [(dotted(node.func), node.lineno) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]


def imports(path: Path) -> set[str]:
    """Lists the top-level modules that a file imports."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.split(".")[0])
    return found


def modules_imported(path: Path) -> set[str]:
    """Lists the modules that a file imports, in full: `a.b` for both `import a.b` and `from a import b`."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_the_checks_see_the_sources() -> None:
    assert len(SOURCES) > 20
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} >= set(PACKAGES)


def test_every_module_says_what_it_owns() -> None:
    silent = [relative(path) for path in SOURCES if not ast.get_docstring(tree(path))]
    assert not silent, f"modules without a docstring: {silent}"


def test_no_file_is_named_for_nothing_in_particular() -> None:
    vague = [
        relative(path)
        for path in (*SOURCES, *TESTS)
        if any(word in part.lower() for part in path.relative_to(ROOT).parts for word in FORBIDDEN_NAMES)
    ]
    assert not vague, f"name these files for what they compute or own: {vague}"


def test_files_stay_readable_in_one_sitting() -> None:
    lengths = {
        relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in (*SOURCES, *TESTS)
    }
    long = {name: lines for name, lines in lengths.items() if lines > MAX_LINES}
    assert not long, f"split these files, the bound is {MAX_LINES} lines: {long}"


def test_tasks_are_started_in_task_groups_only() -> None:
    raw = re.compile(
        r"^(asyncio|(.*\.)?_?loop|.*get_running_loop)\.(create_task|ensure_future)$|^create_task$"
    )
    found = [
        f"{relative(path)}:{line} {call}"
        for path in SOURCES
        for call, line in calls(path)
        if raw.match(call) and relative(path) not in RAW_TASKS
    ]
    assert not found, f"use a TaskGroup, or list the file with its reason: {found}"


def test_every_reason_is_still_needed() -> None:
    for name in (*RAW_TASKS, *TESTED_ELSEWHERE):
        assert (ROOT / name).exists(), f"{name} is excused here but does not exist any more"


def test_nothing_that_runs_on_a_node_starts_a_process() -> None:
    found = []
    for path in in_packages("daemon", "datapath", "ipam"):
        found += [
            f"{relative(path)} imports {name}"
            for name in imports(path) & {"subprocess", "multiprocessing", "pty"}
        ]
        found += [
            f"{relative(path)}:{line} {call}"
            for call, line in calls(path)
            if re.match(r"^os\.(system|popen|fork|forkpty|posix_spawnp?|spawn\w+|exec\w+)$", call)
            or call.startswith("asyncio.create_subprocess")
        ]
    assert not found, f"the daemon talks netlink, it runs no programs: {found}"


def test_every_module_has_its_tests() -> None:
    tested = {name for path in TESTS for name in modules_imported(path)}
    without = []
    for path in in_packages("daemon", "datapath", "ipam"):
        name = relative(path)
        if path.name == "__init__.py" or name in TESTED_ELSEWHERE:
            continue
        if name.removesuffix(".py").replace("/", ".") not in tested:
            without.append(name)
    assert not without, (
        f"no test imports these: write tests/unit/<path>/test_<name>.py, or give a reason: {without}"
    )


def test_nobody_is_excused_from_tests_who_has_some() -> None:
    tested = {name for path in TESTS for name in modules_imported(path)}
    assert not [name for name in TESTED_ELSEWHERE if name.removesuffix(".py").replace("/", ".") in tested]


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    floor = project["project"]["requires-python"].removeprefix(">=")
    assert project["tool"]["ruff"]["target-version"] == "py" + floor.replace(".", "")
    assert project["tool"]["mypy"]["python_version"] == floor
    assert f"sys.version_info >= ({floor.replace('.', ', ')})" in (ROOT / "Makefile").read_text(
        encoding="utf-8"
    )
    assert f"## {project['project']['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_dependencies_are_declared_once_and_locked_with_hashes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = [
        line
        for line in (ROOT / "requirements.in").read_text(encoding="utf-8").splitlines()
        if line and line[0] != "#"
    ]
    assert sorted(listed) == sorted(project["project"]["dependencies"])
    pins = {name: _pins(ROOT / name) for name in ("requirements.lock", "requirements-dev.lock")}
    assert {name.lower() for name in listed} <= set(pins["requirements.lock"])
    assert pins["requirements.lock"].items() <= pins["requirements-dev.lock"].items()


def _pins(lock: Path) -> dict[str, str]:
    """Reads the pins of a lock file; each must carry a hash."""
    pins = {}
    for entry in re.split(r"\n(?=[a-zA-Z0-9])", lock.read_text(encoding="utf-8").strip()):
        match = re.match(r"([A-Za-z0-9_.\-]+)==([^ ;\\]+)", entry)
        if match:
            assert "--hash=sha256:" in entry, f"{lock.name}: {match[1]} has no hash"
            pins[match[1].lower()] = match[2]
    assert pins
    return pins


def test_the_makefile_has_the_promised_targets() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    missing = [target for target in MAKE_TARGETS if not re.search(rf"^{target}:", makefile, re.MULTILINE)]
    assert not missing


def test_no_generated_file_is_committed() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout, so nothing says what is committed")
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    generated = re.compile(r"(^weft_rpc/|^build/|_pb2(_grpc)?\.pyi?$|\.pyc$|\.o$|^\.venv/|\.egg-info/)")
    assert listing.stdout.strip()
    assert not [name for name in listing.stdout.splitlines() if generated.search(name)]


def test_no_path_of_a_developers_machine_is_written_down() -> None:
    found = [
        relative(path)
        for path in (*SOURCES, *TESTS, *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "Makefile")
        if path != Path(__file__).resolve()
        and re.search(r"(?<![\w.])/(work|home/\w+)/", path.read_text(encoding="utf-8"))
    ]
    assert not found
