"""weftctl's entry point: the group of all commands."""

from __future__ import annotations

import click

from ctl.commands.attachments import attachments
from ctl.commands.completion import completion
from ctl.commands.diff import diff
from ctl.commands.ipam import ipam
from ctl.commands.monitor import monitor
from ctl.commands.nodes import nodes
from ctl.commands.policy import policy
from ctl.commands.services import services
from ctl.commands.status import status
from ctl.commands.uninstall import uninstall
from ctl.invocation import Invocation, shared_options


def _print_version(context: click.Context, _parameter: click.Parameter, value: bool) -> None:
    if not value or context.resilient_parsing:
        return
    from importlib.metadata import version

    click.echo(f"weftctl {version('weft')}")
    context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version.",
)
@shared_options
@click.pass_context
def cli(context: click.Context) -> None:
    """Show what Weft does on this node.

    Run it as root on a node, or in the daemon's pod: kubectl -n kube-system exec ds/weft -- weftctl status.

    Exit codes: 0 all is well; 1 something was found (a difference, a leak, a warning, a node that is not
    ready); 2 wrong usage; 3 the daemon cannot be reached; 4 the answer could not be had.
    """
    context.ensure_object(Invocation)


for command in (status, attachments, ipam, nodes, services, policy, monitor, diff, completion, uninstall):
    cli.add_command(command)


def main() -> None:
    """Runs weftctl."""
    cli(prog_name="weftctl")


if __name__ == "__main__":
    main()
