"""Writes what is derived: the ConfigMap from the daemon's keys, and deploy/weft.yaml from the kustomize base.

Run as `python -m deploy.render` after changing either; a test tells when that was forgotten.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import yaml

from daemon.config import KEYS

DEPLOY = Path(__file__).resolve().parent
BASE = DEPLOY / "kustomize" / "base"

CONFIGMAP = """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: weft
  namespace: kube-system
  labels:
    app.kubernetes.io/name: weft
data:
  weftd.yaml: |
    # Every key with its default; keys without a value here are found out by the daemon unless they are given.
    # Read once at the start: kubectl --namespace kube-system rollout restart daemonset weft
"""
HEADING = """\
# kubectl apply -f deploy/weft.yaml, after the image is where nodes can get it: see docs/install.md.
# Rendered from deploy/kustomize/base by `python -m deploy.render`; change it there.
"""


def configuration() -> str:
    """The daemon's configuration file with every key: its meaning, what is allowed, its default."""
    lines = []
    for key in KEYS:
        words = f"{key.meaning} Allowed: {key.allowed}."
        lines += [
            "",
            *textwrap.wrap(
                words,
                100,
                initial_indent="# ",
                subsequent_indent="# ",
                break_on_hyphens=False,
                break_long_words=False,
            ),
        ]
        unset = key.default in ("", (), {})
        value = yaml.safe_dump(key.default, default_flow_style=True).splitlines()[0]
        lines.append(f"# {key.name}:" if unset else f"{key.name}: {value}")
    return "\n".join(lines) + "\n"


def configmap() -> str:
    """The ConfigMap of the kustomize base."""
    return CONFIGMAP + textwrap.indent(configuration(), "    ")


def manifest() -> str:
    """All resources of the kustomize base in one file."""
    names = yaml.safe_load((BASE / "kustomization.yaml").read_text())["resources"]
    return HEADING + "---\n".join(
        configmap() if name == "configmap.yaml" else (BASE / name).read_text() for name in names
    )


def main() -> None:
    """Write the files."""
    (BASE / "configmap.yaml").write_text(configmap())
    (DEPLOY / "weft.yaml").write_text(manifest())


if __name__ == "__main__":
    main()
