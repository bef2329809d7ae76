"""The documents say what the code does: keys, metrics, findings, codes and commands are held to it."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest
import yaml

from ctl.__main__ import cli
from ctl.exits import Exit
from daemon.cluster.store import (
    ENDPOINT_SLICE,
    NAMESPACE,
    NETWORK_POLICY,
    NODE,
    POD,
    REMOTE_POD,
    SERVICE,
    SERVICE_CIDR,
)
from daemon.cni.errors import CODES
from daemon.config import KEYS
from daemon.metrics import Metrics
from lab.__main__ import main as lab

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
PROCESS_METRICS = ("process_", "python_")
NO_FINDINGS = frozenset(
    [
        "ApiClient",
        "BearerToken",
        "ClientIP",
        "ClusterIP",
        "DoesNotExist",
        "EndpointSlice",
        "ExternalIP",
        "ExternalName",
        "IgnoreUnknown",
        "InternalIP",
        "ListServices",
        "LoadBalancer",
        "NetworkUnavailable",
        "NodePort",
        "NotIn",
        "ToBeDeletedByClusterAutoscaler",
        "WeftIsUp",
        "CheckIpam",
        "ExplainPolicy",
        "ListAttachments",
        "ListNodes",
        "ListPolicies",
        "ShowIpam",
    ]
)
"""Words in the daemon's source that are written like names of findings and are none."""


def text(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def missing(document: str, wanted: list[str]) -> list[str]:
    present = set(text(document).splitlines())
    return [line for line in wanted if line not in present]


def shown(default: object) -> str:
    """Renders a default as the configuration file would spell it."""
    if default in ("", (), {}):
        return "none"
    dumped = yaml.safe_dump(default, default_flow_style=True).splitlines()[0]
    return f"`{dumped.strip(chr(39))}`"


def configuration_rows() -> list[str]:
    return [f"| `{key.name}` | {shown(key.default)} | {key.allowed} | {key.meaning} |" for key in KEYS]


def metric_rows() -> list[str]:
    rows = []
    for family in Metrics().registry.collect():
        if family.name.startswith(PROCESS_METRICS):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        rows.append(f"| `{name}` | {family.type} | {family.documentation} |")
    return rows


def code_rows() -> list[str]:
    return [f"| {int(code)} | {meaning} |" for code, meaning in CODES.items()]


def finding_names() -> dict[str, str]:
    """Collects the names of all findings in the daemon's source, with a file that holds each."""
    found = {
        f"Undecodable{kind.capitalize()}": "daemon/cluster/reflector.py"
        for kind in (NODE, SERVICE_CIDR, SERVICE, ENDPOINT_SLICE, NAMESPACE, NETWORK_POLICY, POD, REMOTE_POD)
    }
    for path in sorted((ROOT / "daemon").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
                continue
            if re.fullmatch(r"[A-Z][a-z]+(?:[A-Z][A-Za-z0-9]*)+", node.value):
                found.setdefault(node.value, path.relative_to(ROOT).as_posix())
    return {name: path for name, path in found.items() if name not in NO_FINDINGS}


def commands(group: click.Group, prefix: str = "weftctl") -> Iterator[tuple[str, click.Command]]:
    for name, command in sorted(group.commands.items()):
        yield f"{prefix} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")


def test_every_configuration_key_is_documented_as_it_is() -> None:
    lost = missing("configuration.md", configuration_rows())
    assert not lost, "docs/configuration.md lacks these rows:\n" + "\n".join(lost)
    rows = re.findall(r"^\| `(\w+)` \|", text("configuration.md"), re.MULTILINE)
    assert sorted(rows) == sorted(key.name for key in KEYS)


def test_the_example_configuration_is_valid(tmp_path: Path) -> None:
    from daemon.config import load

    (example,) = re.findall(r"```yaml\n(.*?)```", text("configuration.md"), re.DOTALL)
    path = tmp_path / "weftd.yaml"
    path.write_text(example)
    assert load(str(path), required=True).overlay == "auto"


def test_every_metric_is_documented_as_it_is() -> None:
    lost = missing("operations.md", metric_rows())
    assert not lost, "docs/operations.md lacks these rows:\n" + "\n".join(lost)
    documented = set(re.findall(r"`((?:weft|kubeproxy)_\w+)`", text("operations.md")))
    assert documented <= {re.split("`", row)[1] for row in metric_rows()}


def test_every_cni_error_code_is_documented_as_it_is() -> None:
    lost = missing("operations.md", code_rows())
    assert not lost, "docs/operations.md lacks these rows:\n" + "\n".join(lost)


def test_every_finding_is_documented_with_its_remedy() -> None:
    names = finding_names()
    assert len(names) > 5
    rows = re.findall(r"^\| `([A-Z]\w+)` \| (.+) \| (.+) \|$", text("operations.md"), re.MULTILINE)
    documented = {name for name, _, _ in rows}
    assert not names.keys() - documented, {name: names[name] for name in names.keys() - documented}
    assert not documented - names.keys(), f"nothing reports these: {documented - names.keys()}"


def test_every_command_of_weftctl_is_documented() -> None:
    document = text("weftctl.md")
    for name, command in commands(cli):
        assert f"`{name}" in document, f"docs/weftctl.md lacks {name}"
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert f"`{parameter.opts[-1]}" in document, (
                    f"docs/weftctl.md lacks {parameter.opts[-1]} of {name}"
                )


@pytest.mark.parametrize("code", list(Exit))
def test_every_exit_code_of_weftctl_is_documented(code: Exit) -> None:
    assert re.search(rf"^\| {int(code)} \|", text("weftctl.md"), re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_targets_in_documents_exist(document: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make ([a-z0-9]+)", document.read_text(encoding="utf-8")):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{document.name} names make {target}"


def test_every_command_of_the_lab_is_documented() -> None:
    document = text("lab.md")
    for name, command in commands(lab, "weft-lab"):
        assert f"| `{name}` |" in document, f"docs/lab.md lacks {name}"
        if name in {"weft-lab up", "weft-lab demo", "weft-lab apply"}:
            for option in (each for each in command.params if isinstance(each, click.Option)):
                assert option.opts[0] in document, f"docs/lab.md lacks {option.opts[0]} of {name}"
