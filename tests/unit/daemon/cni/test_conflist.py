"""The configuration that makes runtimes use Weft."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING

import pytest

from daemon.cni import conflist as module
from daemon.cni.conflist import NAME, Conflist, content
from daemon.findings import Findings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def findings() -> Findings:
    return Findings()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "net.d"


@pytest.fixture
def conflist(directory: Path, findings: Findings) -> Conflist:
    return Conflist(findings, str(directory))


def test_the_content_suits_old_and_new_runtimes() -> None:
    assert json.loads(content()) == {
        "cniVersion": "1.0.0",
        "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        "name": "weft",
        "plugins": [{"type": "weft", "capabilities": {"portMappings": True}}],
    }


def test_it_is_installed_whole_and_leaves_nothing_else(conflist: Conflist, directory: Path) -> None:
    assert conflist.look()
    assert os.listdir(directory) == [NAME]
    assert (directory / NAME).read_bytes() == content()
    assert (directory / NAME).stat().st_mode & 0o777 == 0o644
    assert not conflist.look()


def test_the_temporary_name_is_one_that_no_runtime_reads() -> None:
    assert not module._TEMPORARY.endswith((".conf", ".conflist", ".json"))


def test_a_temporary_file_of_a_dead_daemon_is_no_obstacle(conflist: Conflist, directory: Path) -> None:
    directory.mkdir()
    (directory / module._TEMPORARY).write_text("half")
    assert conflist.look()
    assert os.listdir(directory) == [NAME]


@pytest.mark.parametrize("damage", ["remove", "change", "empty"])
def test_it_is_restored(conflist: Conflist, directory: Path, damage: str) -> None:
    conflist.look()
    file = directory / NAME
    if damage == "remove":
        file.unlink()
    else:
        file.write_text("{}" if damage == "change" else "")
    assert conflist.look()
    assert file.read_bytes() == content()


async def test_it_is_watched_and_kept_when_the_watch_ends(
    conflist: Conflist, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.001)
    look = conflist.look
    restored = 0
    enough = asyncio.Event()

    def damage_and_look() -> bool:
        nonlocal restored
        if restored:
            (directory / NAME).write_text("gone")
        restored += look()
        if restored == 3:
            enough.set()
        return True

    monkeypatch.setattr(conflist, "look", damage_and_look)
    watch = asyncio.ensure_future(conflist.run())
    await asyncio.wait_for(enough.wait(), 10)
    watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watch
    assert (directory / NAME).read_bytes() == content()


def test_rivals_that_come_first_are_named(conflist: Conflist, directory: Path, findings: Findings) -> None:
    directory.mkdir()
    (directory / "00-multus.conf").write_text('{"name": "m", "type": "multus"}')
    (directory / "04-other.conflist").write_text('{"name": "o", "plugins": [{"type": "bridge"}]}')
    (directory / "10-flannel.conflist").write_text('{"name": "f", "plugins": [{"type": "flannel"}]}')
    (directory / "00-readme.txt").write_text("hello")
    (directory / "01-chain.conflist").write_text(
        '{"name": "weft", "plugins": [{"type": "weft"}, {"type": "tuning"}]}'
    )
    conflist.look()
    assert {(row.name, row.key) for row in findings.rows()} == {
        ("RivalConflist", "00-multus.conf"),
        ("RivalConflist", "04-other.conflist"),
    }
    assert "sorts before 05-weft.conflist" in findings.rows()[0].message
    (directory / "00-multus.conf").unlink()
    (directory / "04-other.conflist").unlink()
    conflist.look()
    assert findings.rows() == ()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("00-a.conflist", "{"),
        ("00-a.conf", "[]"),
        ("00-a.json", "{}"),
        ("00-a.conflist", '{"name": "a", "plugins": []}'),
        ("00-a.conf", ""),
        ("00-a.conflist", '{"name": "a", "plugins": [{"type": "weft"}, {}]}'),
        ("00-a.conflist", '{"name": "a", "plugins": ["weft"]}'),
        ("00-a.conf", "[" * 100_000),
    ],
)
def test_malformed_files_that_stop_the_runtime_are_named(
    conflist: Conflist, directory: Path, findings: Findings, name: str, text: str
) -> None:
    directory.mkdir()
    (directory / name).write_text(text)
    conflist.look()
    (row,) = findings.rows()
    assert (row.name, row.key, row.level) == ("MalformedConflist", name, "error")


def test_a_directory_that_cannot_be_written_is_told_until_it_can(tmp_path: Path, findings: Findings) -> None:
    blocker = tmp_path / "net.d"
    blocker.write_text("a file where the directory should be")
    conflist = Conflist(findings, str(blocker))
    assert not conflist.look()
    assert [row.name for row in findings.rows()] == ["ConflistUnwritable"]
    blocker.unlink()
    assert conflist.look()
    assert findings.rows() == ()
