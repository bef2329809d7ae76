"""Installing the shim: whole or not at all, whoever executes it meanwhile, and others' plugins left alone."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from pathlib import Path

import pytest

from daemon import __main__ as command
from daemon import install
from daemon.install import MARK, InstallError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "shim"
    path.write_bytes(b"\x7fELF " + MARK + b" version 1")
    return str(path)


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    path = tmp_path / "bin"
    path.mkdir()
    return path


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_both_names_are_written_executable(source: str, plugins: Path) -> None:
    mask = os.umask(0o077)
    try:
        assert install.install(source, str(plugins)) == ("weft", "loopback")
    finally:
        os.umask(mask)
    assert set(contents(plugins)) == {"weft", "loopback"}
    for path in plugins.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o755
        assert path.read_bytes() == Path(source).read_bytes()


def test_what_is_as_it_should_be_is_left_alone(source: str, plugins: Path) -> None:
    install.install(source, str(plugins))
    before = {path.name: path.stat().st_ino for path in plugins.iterdir()}
    assert install.install(source, str(plugins)) == ()
    assert {path.name: path.stat().st_ino for path in plugins.iterdir()} == before


@pytest.mark.parametrize("fault", ["content", "mode"])
def test_what_differs_is_replaced(source: str, plugins: Path, fault: str) -> None:
    install.install(source, str(plugins))
    if fault == "content":
        (plugins / "weft").write_bytes(b"of another version")
    else:
        (plugins / "weft").chmod(0o644)
    assert install.install(source, str(plugins)) == ("weft",)
    assert contents(plugins)["weft"] == Path(source).read_bytes()


def test_an_older_shim_named_loopback_is_replaced(source: str, plugins: Path) -> None:
    (plugins / "loopback").write_bytes(MARK + b" version 0")
    assert "loopback" in install.install(source, str(plugins))


def test_the_loopback_plugin_of_others_stays(source: str, plugins: Path) -> None:
    (plugins / "loopback").write_bytes(b"another plugin")
    assert install.install(source, str(plugins)) == ("weft",)
    assert contents(plugins)["loopback"] == b"another plugin"


def test_an_interrupted_installation_is_taken_over(source: str, plugins: Path) -> None:
    (plugins / ".weft.weft-new").write_bytes(b"half")
    install.install(source, str(plugins))
    assert set(contents(plugins)) == {"weft", "loopback"}


def test_a_failure_leaves_the_old_shim_whole(
    source: str, plugins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (plugins / "weft").write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InstallError, match="No space left on device"):
        install.install(source, str(plugins))
    assert contents(plugins) == {"weft": b"old"}


def test_a_program_that_runs_does_not_hinder_its_replacement(source: str, plugins: Path) -> None:
    """The kernel refuses to write to a file that is executed: it has to be another file."""
    running = plugins / "weft"
    running.write_bytes(Path("/bin/sleep").read_bytes())
    running.chmod(0o755)
    with subprocess.Popen([running, "60"]) as process:
        try:
            executed = f"/proc/{process.pid}/exe"
            deadline = time.monotonic() + 5
            while os.readlink(executed) != str(running) and time.monotonic() < deadline:
                time.sleep(0.01)
            with pytest.raises(OSError, match="Text file busy"):
                running.open("r+b").close()
            install.install(source, str(plugins))
            assert process.poll() is None
        finally:
            process.kill()
    assert running.read_bytes() == Path(source).read_bytes()


@pytest.mark.parametrize("missing", ["source", "directory"])
def test_what_is_missing_is_named(source: str, plugins: Path, missing: str) -> None:
    wrong = str(plugins / "nowhere")
    arguments = (wrong, str(plugins)) if missing == "source" else (source, wrong)
    with pytest.raises(InstallError, match=wrong):
        install.install(*arguments)


def test_another_program_is_not_installed_as_the_shim(plugins: Path) -> None:
    with pytest.raises(InstallError, match="not Weft's shim"):
        install.install("/bin/true", str(plugins))
    assert contents(plugins) == {}


def test_the_shim_carries_its_mark() -> None:
    shim = ROOT / "build" / "weft"
    if not shim.exists():
        pytest.skip("build/weft is made by `make shim`")
    assert MARK in shim.read_bytes()


def test_the_command_installs(source: str, plugins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["install", "--source", source, "--directory", str(plugins)]) == 0
    assert set(contents(plugins)) == {"weft", "loopback"}
    assert command.main(["install", "--source", source, "--directory", "/nowhere"]) == command.FAILED
    assert "/nowhere" in capsys.readouterr().err
