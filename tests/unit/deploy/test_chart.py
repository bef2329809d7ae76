"""The chart makes what the manifest says, takes the daemon's keys, and refuses others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from daemon.config import KEYS, ConfigError, parse
from deploy.render import DEPLOY, manifest

CHART = DEPLOY / "chart"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "weft-e2e"
Object = dict[str, Any]


@pytest.fixture(scope="module")
def helm() -> str:
    found = shutil.which("helm") or shutil.which("helm", path=str(CACHE / "helm"))
    if not found:
        pytest.skip("helm is not on this machine; `make helm` builds it")
    return found


def template(helm: str, values: Object | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [helm, "template", "weft", CHART, "--namespace=kube-system", "--kube-version=1.34.0", "--values=-"],
        input=json.dumps(values or {}),
        capture_output=True,
        text=True,
        check=False,
    )


def rendered(helm: str, values: Object | None = None) -> dict[str, Object]:
    done = template(helm, values)
    assert done.returncode == 0, done.stderr
    return {each["kind"]: each for each in yaml.safe_load_all(done.stdout)}


def test_the_schema_has_the_daemons_keys() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert list(schema["properties"]["config"]["properties"]) == [key.name for key in KEYS]
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(values) == set(schema["properties"]) - {"global"}


def test_it_lints(helm: str) -> None:
    done = subprocess.run([helm, "lint", "--strict", CHART], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_by_default_it_makes_what_the_manifest_says(helm: str) -> None:
    made = rendered(helm)
    wanted = {each["kind"]: each for each in yaml.safe_load_all(manifest())}
    assert made.pop("ConfigMap")["data"] == {"weftd.yaml": "{}\n"}
    del wanted["ConfigMap"]
    del made["DaemonSet"]["spec"]["template"]["metadata"]["annotations"]
    assert made == wanted


def test_configuration_reaches_the_daemon_and_replaces_the_pods(helm: str) -> None:
    config = {"overlay": "auto", "apiServer": "https://10.0.0.1:6443", "probeAddress": "[::1]:9467"}
    made, usual = rendered(helm, {"config": config}), rendered(helm)
    parsed = parse(made["ConfigMap"]["data"]["weftd.yaml"])
    assert (parsed.overlay, parsed.api_server) == ("auto", "https://10.0.0.1:6443")
    templates = [each["DaemonSet"]["spec"]["template"] for each in (made, usual)]
    assert templates[0]["metadata"]["annotations"] != templates[1]["metadata"]["annotations"]
    spec = templates[0]["spec"]
    assert "kubernetes" not in {volume["name"] for volume in spec["volumes"]}
    (weftd,) = spec["containers"]
    assert weftd["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "probes", "host": "::1"}
    assert {"name": "probes", "containerPort": 9467} in weftd["ports"]


def test_without_probe_address_there_are_no_probes(helm: str) -> None:
    made = rendered(helm, {"config": {"probeAddress": ""}})
    (weftd,) = made["DaemonSet"]["spec"]["template"]["spec"]["containers"]
    assert not {"livenessProbe", "readinessProbe"} & weftd.keys()


WRONG: list[Object] = [
    {"ovrlay": "direct"},
    {"overlay": "ipip"},
    {"vni": 0},
    {"mtu": 100},
    {"clusterCIDRs": "10.0.0.0/8"},
    {"resyncSeconds": 0},
    {"apiServer": "10.0.0.1"},
]


@pytest.mark.parametrize("config", WRONG, ids=lambda config: next(iter(config)))
def test_what_the_daemon_would_refuse_is_refused_before(helm: str, config: Object) -> None:
    with pytest.raises(ConfigError):
        parse(yaml.safe_dump(config))
    done = template(helm, {"config": config})
    assert done.returncode
    assert next(iter(config)) in done.stderr
