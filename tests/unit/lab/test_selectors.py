import pytest

from lab.api.selectors import matcher
from lab.errors import ApiError

POD = {
    "metadata": {"name": "a", "labels": {"app": "web", "tier": "front"}},
    "spec": {"nodeName": "node-1"},
}


@pytest.mark.parametrize(
    ("labels", "fields", "selected"),
    [
        ("", "", True),
        ("app=web", "", True),
        ("app==web,tier!=back", "", True),
        ("app!=web", "", False),
        ("app in (web, api)", "", True),
        ("app notin (web,api)", "", False),
        ("app,!missing", "", True),
        ("!app", "", False),
        ("", "spec.nodeName=node-1", True),
        ("", "spec.nodeName=node-2", False),
        ("", "spec.nodeName!=node-2,metadata.name=a", True),
        ("", "status.phase=", True),
        ("app=web", "spec.nodeName=", False),
    ],
)
def test_selection(labels: str, fields: str, selected: bool) -> None:
    assert matcher(labels, fields)(POD) is selected


@pytest.mark.parametrize(("labels", "fields"), [("a in web", ""), ("", "spec.nodeName"), ("a=b=c", "")])
def test_nonsense_is_refused(labels: str, fields: str) -> None:
    with pytest.raises(ApiError):
        matcher(labels, fields)
