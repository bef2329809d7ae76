from __future__ import annotations

import pytest

from daemon.compile.tables import TABLES, table_options, tables_fragment
from daemon.config import Config
from datapath.nft.frontends import Need
from datapath.nft.rules import Family
from datapath.nft.services import COMMON_SIZES, SNAT_MARK, ServiceOptions
from datapath.nft.tables import TABLE, TableOptions, node_tables


def test_without_services_the_tables_are_as_configured() -> None:
    assert table_options(Config()) == TableOptions()
    assert Config().masquerade_mark == SNAT_MARK
    config = Config(vxlan_port=8472, masquerade=False, masquerade_mark=0x80)
    assert table_options(config) == TableOptions(
        vxlan_port=8472, masquerade=False, services=ServiceOptions(mark=0x80)
    )


@pytest.mark.parametrize("mark", [SNAT_MARK, 0x80])
def test_what_services_need_is_added(mark: int) -> None:
    need = Need(frozenset({70, 3, 40}), frozenset({10800, 60}))
    options = table_options(Config(masquerade_mark=mark), need)
    assert options.services == ServiceOptions(sizes=(40, 70), timeouts=(60, 10800), mark=mark)


def test_sizes_that_are_there_anyway_make_no_difference() -> None:
    """Else the tables would be compared again for every number that occurs first."""
    need = Need(frozenset(range(1, COMMON_SIZES + 1)))
    assert table_options(Config(), need) == table_options(Config())
    assert table_options(Config(), Need(frozenset({COMMON_SIZES + 1}))) != table_options(Config())


def test_the_order_of_what_is_needed_makes_no_difference() -> None:
    ways = [Need(frozenset(sizes), frozenset(sizes)) for sizes in ((99, 40, 700), (700, 99, 40))]
    assert table_options(Config(), ways[0]) == table_options(Config(), ways[1])


def test_the_fragment_holds_the_tables_and_nothing_else() -> None:
    options = table_options(Config(), Need(frozenset({40})))
    fragment = tables_fragment(options)
    assert fragment.tables == node_tables(options)
    assert [(each.family, each.name) for each in fragment.tables] == [
        (Family.IPV4, TABLE),
        (Family.IPV6, TABLE),
    ]
    assert not fragment.objects
    assert not fragment.elements
    assert TABLES == ("tables",)
