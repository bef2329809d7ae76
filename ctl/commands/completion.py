"""`weftctl completion`: prints the script that completes weftctl's words in a shell."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    r"""Print a completion script for SHELL.

    \b
    bash:  source <(weftctl completion bash)
    zsh:   source <(weftctl completion zsh)
    fish:  weftctl completion fish | source
    """
    from click.shell_completion import get_completion_class

    maker = get_completion_class(shell)
    assert maker is not None
    root = context.find_root()
    assert isinstance(root.command, click.Group)
    click.echo(maker(root.command, {}, "weftctl", "_WEFTCTL_COMPLETE").source())
