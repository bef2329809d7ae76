"""The static tables of this node, as configured and with the chains that its Services need. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datapath.desired import Fragment
from datapath.nft.services import ServiceOptions
from datapath.nft.tables import TableOptions, node_tables

if TYPE_CHECKING:
    from daemon.config import Config
    from datapath.desired import FragmentKey
    from datapath.nft.frontends import Need

TABLES: FragmentKey = ("tables",)


def table_options(config: Config, need: Need | None = None) -> TableOptions:
    """Return what the tables depend on."""
    services = ServiceOptions(mark=config.masquerade_mark)
    if need is not None:
        services = ServiceOptions(
            sizes=tuple(sorted(size for size in need.sizes if size > services.common)),
            timeouts=tuple(sorted(need.timeouts)),
            mark=config.masquerade_mark,
        )
    return TableOptions(vxlan_port=config.vxlan_port, masquerade=config.masquerade, services=services)


def tables_fragment(options: TableOptions) -> Fragment:
    """Return the fragment of the tables themselves; their elements are others'."""
    return Fragment(tables=node_tables(options))
