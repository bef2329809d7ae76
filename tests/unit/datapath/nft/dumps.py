"""Tables as the kernel would dump them: our own encoding plus what the kernel adds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from datapath.netlink.attributes import be32, be64, parse, string
from datapath.nft import encode
from datapath.nft.observe import ObservedChain, ObservedRule, ObservedSet, ObservedTable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from datapath.nft.rules import Table


def dumped(table: Table, elements: Mapping[tuple[int, str, str], Mapping[bytes, bytes]]) -> ObservedTable:
    encoded = encode.encode_table(table)
    sets = {}
    for each in table.sets:
        declaration = string(1, table.name) + encoded.sets[each.name].declaration + be64(16, 5)
        content = {**elements.get((*table.key, each.name), {}), **dict(each.constant)}
        sets[each.name] = ObservedSet(declaration, content)
    chains = {}
    for name, chain in encoded.chains.items():
        rules = []
        for rule in chain.rules:
            found = parse(rule)
            rules.append(ObservedRule(found[encode.RULE_EXPRESSIONS], found.get(encode.RULE_USERDATA, b"")))
        chains[name] = ObservedChain(chain.declaration + be32(6, 1), tuple(rules))
    return ObservedTable(0, encoded.user_data, sets, chains)
