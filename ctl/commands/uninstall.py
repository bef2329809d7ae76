"""`weftctl uninstall`: takes Weft off this node. The only command that changes anything."""

from __future__ import annotations

import click


@click.command()
@click.option("--force", is_flag=True, help="Also when pods use it: they lose their network.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be removed.")
@click.option("--root", metavar="PATH", default="/", help="Where the node's directories are mounted. [/]")
def uninstall(force: bool, dry_run: bool, root: str) -> None:
    """Remove everything of Weft's from this node: conflist, links, routes, nftables, shim, state.

    Refuses (exit code 1) while pods use it, and (exit code 4) while the daemon runs. May be repeated: what is
    gone is gone, and nothing that others own is touched. Settings below /proc/sys stay as they are.
    """
    from ctl.uninstall import Places
    from ctl.uninstall import uninstall as run

    run(Places().below(root), click.echo, force=force, dry_run=dry_run)
