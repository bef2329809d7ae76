"""What is said to show a meaning is there: as a story, or as a test on the kernel."""

import re
from pathlib import Path

import pytest

from tests.scenarios.meanings import MEANINGS
from tests.scenarios.policies import policy_stories
from tests.scenarios.topology import FAMILIES

FUNCTIONAL = Path(__file__).resolve().parents[2] / "functional"
STORIES = {scenario.name: scenario for scenario in policy_stories()}
TESTS = {
    name
    for path in FUNCTIONAL.rglob("test_*.py")
    for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
}


@pytest.mark.parametrize("meaning", list(MEANINGS))
def test_each_meaning_is_shown_on_the_kernel(meaning: str) -> None:
    assert MEANINGS[meaning]
    for name in MEANINGS[meaning]:
        assert name in (STORIES if " " in name or name in STORIES else TESTS), name


def test_each_story_has_a_meaning_and_is_told_in_both_families() -> None:
    assert STORIES.keys() <= {name for names in MEANINGS.values() for name in names}
    for name, scenario in STORIES.items():
        assert {probe.family for step in scenario.steps for probe in step.probes} == set(FAMILIES), name
