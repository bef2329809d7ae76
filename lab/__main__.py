"""The command line of `weft-lab`: a Weft cluster of network namespaces on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
import yaml
from rich.console import Console

from lab import manifests, tables
from lab.api.resources import Catalogue
from lab.client import Client, Launch
from lab.demo import demonstrate, run_matrix
from lab.errors import ApiError, LabError
from lab.namespaces import enter_command
from lab.options import Options, default_shim
from lab.state import DIRECTORY, State

if TYPE_CHECKING:
    from collections.abc import Callable

_WIDTH_OF_FILES = 160
console = Console(width=None if sys.stdout.isatty() else _WIDTH_OF_FILES)
_OUTPUTS = click.Choice(["table", "json", "yaml", "name"])


class LabGroup(click.Group):
    """Commands whose LabErrors become one clear line and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except (LabError, ApiError) as error:
            click.echo(f"weft-lab: {error}", err=True)
            ctx.exit(1)


@click.group(cls=LabGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="weft")
def main() -> None:
    """A whole Weft cluster on one machine: nodes are network namespaces, everything else is real."""
    if os.geteuid() != 0 and not {"-h", "--help"} & set(sys.argv):
        raise LabError("network namespaces need root: run it with sudo")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as tidily as by Ctrl-C


def _shape(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of commands that start a lab."""
    for option in reversed(
        [
            click.option("--nodes", type=click.IntRange(1, 50), default=3, show_default=True),
            click.option(
                "--family",
                type=click.Choice(["dual", "ipv4", "ipv6"]),
                default="dual",
                show_default=True,
                help="Address families of pods.",
            ),
            click.option(
                "--underlay-family",
                type=click.Choice(["dual", "ipv4", "ipv6"]),
                default="dual",
                show_default=True,
                help="Address families of the nodes' own addresses.",
            ),
            click.option(
                "--overlay",
                type=click.Choice(["vxlan", "direct", "auto"]),
                default="vxlan",
                show_default=True,
            ),
            click.option(
                "--segments",
                type=click.IntRange(1, 9),
                default=1,
                show_default=True,
                help="Layer 2 networks with a router between; nodes stand on them in turn.",
            ),
            click.option(
                "--mtu",
                type=click.IntRange(1280, 9000),
                default=1500,
                show_default=True,
                help="MTU of the underlay.",
            ),
            click.option(
                "--routes",
                type=click.Choice(["none", "known", "default"]),
                default="known",
                show_default=True,
                help="Where nodes have routes to: nowhere else, known networks, anywhere.",
            ),
            click.option(
                "--zones",
                default="",
                callback=lambda _ctx, _option, text: tuple(filter(None, text.split(","))),
                help="Zones that nodes are in, in turn: a,b.",
            ),
            click.option("--rp-filter", type=click.IntRange(0, 2), default=1, show_default=True),
            click.option(
                "--config",
                type=click.Path(exists=True, dir_okay=False),
                default=None,
                help="YAML with keys of weftd.yaml for all nodes.",
            ),
            click.option(
                "--shim", type=click.Path(path_type=Path), default=default_shim, show_default="build/weft"
            ),
        ]
    ):
        command = option(command)
    return command


def _options(config: str | None, **chosen: Any) -> Options:
    keys: dict[str, Any] = {}
    if config:
        try:
            keys = yaml.safe_load(Path(config).read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise LabError(f"cannot read {config}: {error}") from error
        if not isinstance(keys, dict):
            raise LabError(f"{config}: must hold keys and values of weftd.yaml")
    if chosen["overlay"] == "direct" and chosen["segments"] > 1:
        raise LabError("overlay direct needs all nodes on one segment; auto mixes direct routes and VXLAN")
    return Options(state=DIRECTORY, config=keys, **chosen)


@main.command()
@_shape
@click.option(
    "--wait",
    "seconds",
    type=float,
    default=60.0,
    show_default=True,
    help="Seconds until all nodes must be Ready; 0 does not wait.",
)
def up(seconds: float, **shape: Any) -> None:
    """Start a lab and leave it running."""
    begin = time.monotonic()
    options = _options(**shape)
    with Launch(options) as launch:
        with console.status("starting") as status:
            launch.wait_up(lambda what: status.update(f"starting {what}"))
            if seconds:
                status.update("waiting for the nodes to be Ready")
                _client().order("POST", f"/wait?seconds={seconds}")
        launch.detach()
    console.print(f"{options.nodes} nodes after {time.monotonic() - begin:.1f} s")
    console.print(tables.lab(_client().order("GET", "/lab")))


@main.command()
def down() -> None:
    """End the lab and remove everything it made."""
    console.print(_client().down())


@main.command()
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table")
def status(output: str) -> None:
    """Show the nodes, their daemons, and what is not ready."""
    shown = _client().order("GET", "/lab")
    if output == "json":
        click.echo(json.dumps(shown, indent=2))
        return
    age = time.time() - shown["since"]
    console.print(f"up for {age:.0f} s, pid {shown['pid']}, {shown['family']}, overlay {shown['overlay']}")
    console.print(tables.lab(shown))
    for reason in shown["unready"]:
        console.print(f"[yellow]not ready:[/] {reason}", highlight=False)


@main.command()
@click.option("-f", "--file", "files", multiple=True, required=True, help="Manifest; - is standard input.")
@click.option("-n", "--namespace", default="default", show_default=True)
@click.option("--wait", "seconds", type=float, default=0.0, help="Wait until all pods are Running.")
def apply(files: tuple[str, ...], namespace: str, seconds: float) -> None:
    """Create or change objects from manifests."""
    client = _client()
    for file in files:
        for item in manifests.read(file):
            url = manifests.object_url(item, namespace, _catalogue(client))
            headers = {"Content-Type": "application/apply-patch+yaml"}
            client.api("PATCH", url, data=json.dumps(item), headers=headers)
            console.print(f"{item['kind'].lower()}/{item['metadata']['name']} applied", highlight=False)
    if seconds:
        client.order("POST", f"/wait?seconds={seconds}")


@main.command()
@click.argument("what", nargs=-1)
@click.option("-f", "--file", "files", multiple=True, help="Manifest whose objects are deleted.")
@click.option("-n", "--namespace", default="default", show_default=True)
def delete(what: tuple[str, ...], files: tuple[str, ...], namespace: str) -> None:
    """Delete objects: KIND NAME... or those of manifests."""
    client = _client()
    urls = [
        manifests.object_url(item, namespace, _catalogue(client))
        for file in files
        for item in manifests.read(file)
    ]
    if what:
        kind, *names = what
        collection = manifests.collection_url(_catalogue(client).named(kind), namespace)
        urls += [f"{collection}/{name}" for name in names]
    if not urls:
        raise LabError("nothing to delete: name KIND and NAME, or a file by -f")
    for url in urls:
        client.api("DELETE", url)
        console.print(f"{'/'.join(url.split('/')[-2:])} deleted", highlight=False)


@main.command()
@click.argument("kind")
@click.argument("name", default="")
@click.option("-n", "--namespace", default="default", show_default=True)
@click.option("-A", "--all-namespaces", is_flag=True)
@click.option("-l", "--selector", default="", help="Label selector.")
@click.option("-o", "--output", type=_OUTPUTS, default="table")
def get(kind: str, name: str, namespace: str, all_namespaces: bool, selector: str, output: str) -> None:
    """Show objects of the lab's API."""
    client = _client()
    resource = _catalogue(client).named(kind)
    url = manifests.collection_url(resource, "" if all_namespaces else namespace)
    answer = client.api("GET", f"{url}/{name}" if name else url, params={"labelSelector": selector})
    items = [answer] if name else answer["items"]
    match output:
        case "json":
            click.echo(json.dumps(answer, indent=2))
        case "yaml":
            click.echo(yaml.safe_dump(answer, sort_keys=False), nl=False)
        case "name":
            for item in items:
                click.echo(f"{resource.plural}/{item['metadata']['name']}")
        case _:
            console.print(
                tables.objects(items, resource.kind, namespaces=all_namespaces and resource.namespaced)
            )


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("target")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("-n", "--namespace", default="default", show_default=True, help="Of the pod.")
def exec(target: str, command: tuple[str, ...], namespace: str) -> NoReturn:  # noqa: A001 - the command's name
    """Run a command in a node or pod, or on the host "outside"; a shell where none is given."""
    client = _client()
    nodes = {node["name"] for node in client.order("GET", "/lab")["nodes"]}
    nodes.add("outside")
    found = client.order("GET", f"/target/{target}" if target in nodes else f"/target/{namespace}/{target}")
    arguments = command or (os.environ.get("SHELL", "/bin/sh"),)
    line = enter_command(found["paths"], *arguments, net=found["net"])
    os.execvpe(line[0], line, {**os.environ, "PATH": _path()})  # noqa: S606 - the command that was asked for


@main.command()
@click.argument("node")
@click.option("-f", "--follow", is_flag=True)
@click.option("--tail", type=int, default=200, show_default=True)
def logs(node: str, follow: bool, tail: int) -> NoReturn:
    """Show the log of a node's daemon."""
    file = _client().order("GET", f"/target/{node}")["log"]
    arguments = ["tail", "-n", str(tail), *(["-F"] if follow else []), file]
    os.execvp(arguments[0], arguments)  # noqa: S606 - tail(1) follows files better than we could


@main.command()
@click.argument("node")
@click.argument("action", type=click.Choice(["kill", "stop", "start", "reboot", "attract"]))
def node(node: str, action: str) -> None:
    """Kill, stop or start a node's daemon, reboot the node, or let it attract what comes for Services."""
    _client().order("POST", f"/node/{node}/{action}")


@main.command()
@click.argument("kind", metavar="down|hang|forget|drop-watches|none|STATUS")
def fault(kind: str) -> None:
    """Make the API server misbehave: be down, hang, lose its history, cut watches, answer STATUS only."""
    _client().order("POST", f"/fault/{kind}")


@main.command()
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table")
def test(output: str) -> None:
    """Test every road of the cluster, with the source address that the receiver sees."""
    outcomes = run_matrix(_client(), console if output == "table" else Console(stderr=True))
    if output == "json":
        click.echo(json.dumps(outcomes, indent=2))
    bad = tables.faults(outcomes)
    if not outcomes:
        raise LabError("there are no pods to test: apply a manifest first")
    if bad:
        raise LabError("\n  ".join([f"{sum(bool(row['fault']) for row in outcomes)} probes failed:", *bad]))


@main.command()
@_shape
@click.option(
    "--pods", "pods_per_node", type=click.IntRange(1, 10), default=3, show_default=True, help="Per node."
)
@click.option("--keep", is_flag=True, help="Leave the lab running.")
def demo(pods_per_node: int, keep: bool, **shape: Any) -> None:
    """Start a lab with pods, show it, test every road, end it: exit status 0 when all is green."""
    demonstrate(_options(**shape), pods_per_node, console, keep=keep)


def _client() -> Client:
    return Client(State(DIRECTORY))


def _catalogue(client: Client) -> Catalogue:
    """The known kinds, with the lab's custom ones."""
    catalogue = Catalogue()
    for definition in client.api("GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions")["items"]:
        catalogue.define(definition)
    return catalogue


def _path() -> str:
    """PATH with this installation's commands first, so that weftctl is found in nodes."""
    return f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
