"""Tests that need root: skipped without it, failed in CI, run with it."""

from __future__ import annotations

import os
from typing import Any, cast

import pytest

from tests.conftest import pytest_runtest_setup


class Item:
    """As much of a pytest item as the hook asks for."""

    def __init__(self, *marks: str) -> None:
        self.marks = marks

    def get_closest_marker(self, name: str) -> Any:
        return name if name in self.marks else None


def set_up(item: Item) -> None:
    pytest_runtest_setup(cast("pytest.Item", item))


def test_others_run_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    set_up(Item())
    set_up(Item("soak"))


def test_root_runs_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("CI", "true")
    set_up(Item("root"))


def test_without_root_they_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="need root"):
        set_up(Item("root"))


def test_without_root_ci_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="start pytest as root"):
        set_up(Item("root"))
