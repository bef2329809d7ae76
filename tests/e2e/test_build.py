"""What the harness says when the machine cannot build a cluster."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.e2e.cluster import build, images

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.e2e


def test_a_missing_go_is_named_with_the_version_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "CACHE", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(build.BuildError, match=r"need Go 1\.24\S* or newer: install it"):
        build.kubernetes()


def test_an_old_go_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "CACHE", tmp_path)
    old = tmp_path / "go"
    old.write_text("#!/bin/sh\necho go1.22.3\n")
    old.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda *_, **__: str(old))
    with pytest.raises(build.BuildError, match=r"is go1\.22\.3, but kubernetes needs Go 1\.24"):
        build.kubernetes()


def test_the_image_is_made_once_and_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "CACHE", tmp_path)
    first = images.image()
    made = first.stat().st_mtime_ns
    assert images.image() == first
    assert first.stat().st_mtime_ns == made
    listed = subprocess.run(["tar", "-tf", first], capture_output=True, text=True, check=True).stdout.split()
    assert "manifest.json" in listed
