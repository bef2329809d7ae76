"""Kernel settings are written where the environment says, /proc/sys without it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import pytest

from datapath import observe, sysctls
from datapath.errors import DatapathError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("directory", ["/proc/sys", "/host/proc/sys"])
def test_the_environment_decides_where(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if directory == "/proc/sys":
        monkeypatch.delenv("WEFT_SYSCTLS", raising=False)
    else:
        monkeypatch.setenv("WEFT_SYSCTLS", directory)
    try:
        assert directory == importlib.reload(sysctls).WRITABLE
    finally:
        monkeypatch.undo()
        importlib.reload(sysctls)


def test_settings_are_written_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysctls, "WRITABLE", str(tmp_path))
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "one").write_text("")
    observe.write_setting("net/one", "1")
    assert (tmp_path / "net" / "one").read_text() == "1"
    with pytest.raises(DatapathError, match=f"{tmp_path}/net/two does not exist"):
        observe.write_setting("net/two", "1")
