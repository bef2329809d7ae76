import json
from pathlib import Path

import pytest

from lab.errors import PluginError
from lab.network_config import choose, parse


def test_the_first_file_by_name_wins_and_other_suffixes_do_not_count(tmp_path: Path) -> None:
    for name in ("00-later.conflist.tmp", "10-b.conflist", "05-a.conf", "99-z.json"):
        (tmp_path / name).write_text(json.dumps({"name": name, "cniVersion": "1.0.0", "type": "x"}))
    assert choose(tmp_path).file == "05-a.conf"


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"name": "n", "plugins": []}', '{"name": "n", "plugins": [{}]}']
)
def test_a_malformed_first_file_fails_everything(tmp_path: Path, text: str) -> None:
    (tmp_path / "00-bad.conflist").write_text(text)
    (tmp_path / "05-good.conflist").write_text(json.dumps({"name": "n", "cniVersion": "1.0.0", "type": "x"}))
    with pytest.raises(PluginError, match=r"not initialized: 00-bad\.conflist"):
        choose(tmp_path)


def test_an_empty_directory_is_no_network(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="no network config found"):
        choose(tmp_path)


@pytest.mark.parametrize(("newest", "chosen"), [("1.1.0", "1.1.0"), ("1.0.0", "1.0.0"), ("0.4.0", "0.4.0")])
def test_the_highest_version_that_both_speak(newest: str, chosen: str) -> None:
    versions = ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]
    text = json.dumps(
        {"name": "n", "cniVersion": "1.0.0", "cniVersions": versions, "plugins": [{"type": "x"}]}
    )
    assert parse(text, "f", newest).version == chosen


def test_plugins_get_only_the_capabilities_they_declare() -> None:
    plugins = [{"type": "x", "capabilities": {"bandwidth": True}}, {"type": "y"}]
    network = parse(json.dumps({"name": "n", "cniVersion": "1.0.0", "plugins": plugins}), "f", "1.1.0")
    capabilities = {"bandwidth": {"ingressRate": 1}, "portMappings": [{"hostPort": 1}]}
    first = json.loads(network.stdin(0, None, capabilities))
    second = json.loads(network.stdin(1, {"ips": []}, capabilities))
    assert first["runtimeConfig"] == {"bandwidth": {"ingressRate": 1}}
    assert first["name"] == "n"
    assert first["cniVersion"] == "1.0.0"
    assert "prevResult" not in first
    assert "runtimeConfig" not in second
    assert second["prevResult"] == {"ips": []}
