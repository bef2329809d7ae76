"""The manifest is rendered from its base, has every key of the daemon, and asks for no more than needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from ctl.uninstall import Places
from daemon.config import KEYS, Config, parse
from deploy.render import BASE, DEPLOY, configmap, configuration, manifest

Object = dict[str, Any]


def load(text: str) -> list[Object]:
    return list(yaml.safe_load_all(text))


def find(kind: str) -> Object:
    (found,) = (each for each in load(manifest()) if each["kind"] == kind)
    return found


def pod() -> Object:
    spec: Object = find("DaemonSet")["spec"]["template"]["spec"]
    return spec


def test_what_is_rendered_is_up_to_date() -> None:
    remedy = "run `python -m deploy.render`"
    assert (BASE / "configmap.yaml").read_text() == configmap(), remedy
    assert (DEPLOY / "weft.yaml").read_text() == manifest(), remedy


def test_kustomize_makes_the_same() -> None:
    if not shutil.which("kubectl"):
        pytest.skip("kubectl, which has kustomize, is not on this machine")
    made = subprocess.run(["kubectl", "kustomize", BASE], capture_output=True, text=True, check=True).stdout
    ours, theirs = (sorted(json.dumps(o, sort_keys=True) for o in load(t)) for t in (manifest(), made))
    assert ours == theirs


def test_the_configuration_is_the_default_with_every_key() -> None:
    document = find("ConfigMap")["data"]["weftd.yaml"]
    assert parse(document) == Config()
    for key in KEYS:
        lines = [line for line in document.splitlines() if line.removeprefix("# ").startswith(f"{key.name}:")]
        assert len(lines) == 1, key.name
    assert yaml.safe_load(configuration()) == {
        key.name: key.default for key in KEYS if key.default not in ("", (), {})
    }


def test_the_daemon_may_do_what_it_does_and_nothing_else() -> None:
    granted = {
        (group, resource, verb)
        for rule in find("ClusterRole")["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    network, read = "networking.k8s.io", ("get", "list", "watch")
    assert granted == {
        *(("", "nodes", verb) for verb in read),
        *(("", kind, verb) for kind in ("pods", "namespaces", "services") for verb in read),
        *(("discovery.k8s.io", "endpointslices", verb) for verb in read),
        *((network, kind, verb) for kind in ("servicecidrs", "networkpolicies") for verb in read),
        ("", "nodes/status", "patch"),
        *(("", "events", verb) for verb in ("create", "patch")),
    }


def test_the_agent_is_not_privileged() -> None:
    (install,), (weftd,) = pod()["initContainers"], pod()["containers"]
    assert install["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert weftd["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "SYS_ADMIN"]}
    for container in (install, weftd):
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert not container["securityContext"].get("privileged")
    assert "hostPID" not in pod()


def test_only_the_installer_can_write_plugins() -> None:
    """Whoever writes there is executed by the container runtime."""
    weftd = {mount["name"]: mount for mount in pod()["containers"][0]["volumeMounts"]}
    assert "cni-bin" not in weftd
    assert weftd["kubernetes"]["readOnly"]
    assert weftd["netns"]["mountPropagation"] == "HostToContainer"


def test_every_mount_has_its_volume_and_is_used() -> None:
    volumes = {volume["name"] for volume in pod()["volumes"]}
    mounts = {m["name"] for c in (*pod()["initContainers"], *pod()["containers"]) for m in c["volumeMounts"]}
    assert mounts == volumes


def test_probes_ask_where_the_daemon_answers() -> None:
    (weftd,) = pod()["containers"]
    ports = {port["name"]: port["containerPort"] for port in weftd["ports"]}
    assert ports == {
        "metrics": int(Config().metrics_address.rpartition(":")[2]),
        "probes": int(Config().probe_address.rpartition(":")[2]),
    }
    host = Config().probe_address.rpartition(":")[0]
    assert weftd["livenessProbe"]["httpGet"] == {"path": "/livez", "host": host, "port": "probes"}
    assert weftd["readinessProbe"]["httpGet"] == {"path": "/readyz", "host": host, "port": "probes"}


def test_a_port_that_kube_proxy_may_hold_keeps_no_agent_from_its_node() -> None:
    """A declared port of a pod in the host network is one that the scheduler wants to be free."""
    declared = {port["containerPort"] for port in pod()["containers"][0]["ports"]}
    assert int(Config().health_address.rpartition(":")[2]) not in declared


def uninstaller() -> Object:
    (job,) = load((DEPLOY / "uninstall.yaml").read_text())
    spec: Object = job["spec"]["template"]["spec"]
    return spec


def test_the_job_that_uninstalls_sees_what_the_agent_has_made() -> None:
    (container,) = uninstaller()["containers"]
    (weftd,) = pod()["containers"]
    assert container["image"] == weftd["image"]
    (root,) = (word.split("=")[1] for word in container["command"] if word.startswith("--root="))
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    sources = {volume["hostPath"]["path"] for volume in uninstaller()["volumes"]}
    assert {f"{root}{path}" for path in sources} == mounted
    places = Places()
    assert {places.conflists, places.plugins, os.path.dirname(places.state)} == sources


def test_the_job_that_uninstalls_runs_where_nothing_else_does_any_more() -> None:
    """On a node that is cordoned, not Ready and without a network, with the least that it takes."""
    spec = uninstaller()
    assert spec["nodeName"] == "NODE"
    assert spec["hostNetwork"]
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert not spec["automountServiceAccountToken"]
    context = spec["containers"][0]["securityContext"]
    assert not context["privileged"]
    assert context["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
