"""Asks the kernel whether it takes a table, without leaving one: made and deleted in one transaction.

No packet ever meets it: the table has no hooks, and is gone when the transaction is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from datapath.nft import encode
from datapath.nft.observe import ObservedRuleset
from datapath.nft.plan import Transaction, plan
from datapath.nft.rules import Ruleset

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datapath.nft.rules import Table

TABLE = "weft-trial"


def trial(table: Table, elements: Mapping[str, Mapping[bytes, bytes]]) -> Transaction:
    """Return the transaction that tries a table with these elements, by the sets' names.

    Raises ValueError when the table has hooks: it would be in the path of packets.
    """
    if any(chain.hook is not None for chain in table.chains):
        raise ValueError(f"table {table.name} has hooks, and a trial must not be seen by packets")
    wanted = Ruleset((table,), {(*table.key, name): each for name, each in elements.items()})
    made = plan(wanted, ObservedRuleset(0, {}))
    messages = [message for transaction in made for message in transaction.messages]
    return Transaction((*messages, encode.delete_table(*table.key)), ())
