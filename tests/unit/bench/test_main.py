from __future__ import annotations

import importlib.util

import pytest

from bench import __main__ as program


@pytest.mark.parametrize("name", program.BENCHES)
def test_every_bench_that_is_offered_exists(name: str) -> None:
    assert importlib.util.find_spec(program.module_of(name)) is not None


def test_an_unknown_name_is_answered_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    program.main(["nodes", "nonsense"])
    printed = capsys.readouterr().out
    assert "There is no bench nonsense." in printed
    assert "service-changes" in printed
