"""Compares the rules that should be with those observed, and makes the transactions between the two. Pure.

Structure that is right is left alone, elements change one by one. New sets are filled before the rules that
lead packets to them come in, so no packet ever meets a rule with a half-filled set; every transaction is
bounded, as each one holds the kernel's nftables lock. Only a table of another layout is replaced as a whole,
in one transaction whatever its size.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

from datapath.netlink.attributes import NLA_F_NESTED, items
from datapath.nft import encode
from datapath.nft.observe import ObservedTable
from datapath.nft.render import render_element
from datapath.nft.rules import Family

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence

    from datapath.netlink.transport import Message
    from datapath.nft.observe import ObservedChain, ObservedRuleset
    from datapath.nft.rules import Ruleset, Set, Table

TRANSACTION_ELEMENTS = 2048
"""Elements that one transaction adds or deletes at most: some 10 ms of the kernel's lock."""

_PIECE = TRANSACTION_ELEMENTS // 4
_NAMED_ELEMENTS = 4
_ATTRIBUTE = struct.Struct("=HH")
_NOTHING = ObservedTable(0, b"", {}, {})


class Change(NamedTuple):
    """One difference in words: "add", "replace" or "delete", and the object."""

    action: str
    subject: str


class Transaction(NamedTuple):
    """Messages that are committed together.

    What they change is put into words only when somebody asks: every attachment is such a change.
    """

    messages: tuple[Message, ...]
    words: tuple[Callable[[], Iterable[Change]], ...]

    @property
    def changes(self) -> tuple[Change, ...]:
        """What the messages change."""
        return tuple(change for words in self.words for change in words())


class SetChange(NamedTuple):
    """Two states of a set's elements, or of the part of them that may differ."""

    table: Table
    declared: Set
    current: Mapping[bytes, bytes]
    wanted: Mapping[bytes, bytes]


class _Step(NamedTuple):
    """Messages that may not be separated, the number of elements in them, and what they change."""

    messages: list[Message]
    elements: int
    words: tuple[Callable[[], Iterable[Change]], ...]


def plan(desired: Ruleset, observed: ObservedRuleset) -> list[Transaction]:
    """Return the transactions, in order, from what was observed to what is desired; none if it is that.

    Every observed table is one of ours, so one that is not desired is deleted.
    """
    wanted = {table.key for table in desired.tables}
    transactions = [_delete(*each) for each in sorted(observed.tables.keys() - wanted)]
    for table in desired.tables:
        present = observed.tables.get(table.key)
        elements = {each.name: _wanted(desired, table, each) for each in table.sets}
        if present is not None and not _is_compatible(table, present):
            transactions.append(_replace(table, elements))
        else:
            transactions += _pack(_repair(table, elements, present))
    return transactions


def change_elements(changes: Iterable[SetChange]) -> list[Transaction]:
    """Return the transactions that change the elements of sets; normally one for all of them."""
    changes = sorted(changes, key=_RANK)
    additions = 0
    for each in changes:
        additions += _PIECE + 1 if each.current else len(each.wanted)
    # A few are new, as with every attachment: nothing has to be kept together or apart.
    return _additions(changes) if additions <= _PIECE else _pack(_element_steps(changes))


def _additions(changes: Sequence[SetChange]) -> list[Transaction]:
    """Return the one transaction that adds elements to sets, in the order given; none if there are none."""
    messages: list[Message] = []
    for table, declared, _, wanted in changes:
        if wanted:
            messages += encode.add_elements(table, declared, wanted)
    words = tuple([partial(_piece_changes, each.table, each.declared, (), each.wanted) for each in changes])
    return [Transaction(tuple(messages), words)] if messages else []


def restructure(old: Table | None, new: Table | None) -> list[Transaction] | None:
    """Return the transactions from one structure of a table to another, the elements left alone.

    Nothing need be read for this: the kernel holds `old`. None when the table must be replaced as a whole.
    """
    if new is None:
        return [_delete(*old.key)] if old is not None else []
    constants = {each.name: dict(each.constant) for each in new.sets}
    if old is None:
        return _pack(_repair(new, constants, None))
    old, new = _differing(old, new)
    before, after = encode.encode_table(old), encode.encode_table(new)
    if before.user_data != after.user_data or not _declared_alike(before, after):
        return None
    return _pack(_restructured(old, new, before, after))


def _differing(old: Table, new: Table) -> tuple[Table, Table]:
    """Return both tables without what is the very same object in both: of thousands of chains few change."""
    sets = {*map(id, old.sets)} & {*map(id, new.sets)}
    chains = {*map(id, old.chains)} & {*map(id, new.chains)}

    def reduced(table: Table) -> Table:
        return replace(
            table,
            sets=tuple([each for each in table.sets if id(each) not in sets]),
            chains=tuple([each for each in table.chains if id(each) not in chains]),
        )

    return reduced(old), reduced(new)


def _declared_alike(before: encode.EncodedTable, after: encode.EncodedTable) -> bool:
    """Whether what both tables have is declared in the same way in both."""
    return all(each == after.sets.get(name, each) for name, each in before.sets.items()) and all(
        each.declaration == after.chains.get(name, each).declaration for name, each in before.chains.items()
    )


def _restructured(
    old: Table, new: Table, before: encode.EncodedTable, after: encode.EncodedTable
) -> Iterator[_Step]:
    yield from _declare(new, after, before.sets, before.chains)
    known = {each.name: each.constant for each in old.sets if each.constant}
    yield from _element_steps(
        SetChange(new, each, dict(constant), dict(each.constant))
        for each in new.sets
        if each.constant != (constant := known.get(each.name, ()))
    )
    fresh = after.chains.keys() - before.chains.keys()
    changed = [name for name, each in after.chains.items() if name in fresh or before.chains[name] != each]
    step = _rewrite(
        new, after, changed, before.sets.keys(), {n: len(c.rules) for n, c in before.chains.items()}
    )
    if step.messages:
        yield step


def _delete(family: int, name: str) -> Transaction:
    words = (_said("delete", f"table {_family(family)} {name}"),)
    return Transaction((encode.delete_table(family, name),), words)


def _wanted(desired: Ruleset, table: Table, declared: Set) -> Mapping[bytes, bytes]:
    elements = desired.elements.get((*table.key, declared.name), {})
    return {**elements, **dict(declared.constant)} if declared.constant else elements


def _is_compatible(table: Table, present: ObservedTable) -> bool:
    """Whether the table can be repaired in place: same layout, nothing of ours declared otherwise."""
    encoded = encode.encode_table(table)
    if present.flags or present.user_data != encoded.user_data:
        return False
    for name, wanted in encoded.sets.items():
        found = present.sets.get(name)
        if found is not None and not _same_declaration(wanted.declaration, found.declaration):
            return False
    for name, chain in encoded.chains.items():
        known = present.chains.get(name)
        if known is not None and not _same_hook(chain.declaration, known):
            return False
    return True


def _same_declaration(wanted: bytes, found: bytes) -> bool:
    """Compare sets: flags that we don't ask for, a timeout say, make it another set."""
    flags = encode.SET_FLAGS
    return covers(wanted, found) and dict(items(wanted)).get(flags) == dict(items(found)).get(flags)


def _same_hook(declaration: bytes, present: ObservedChain) -> bool:
    if declaration:
        return covers(declaration, present.declaration)
    return all(kind != encode.CHAIN_HOOK for kind, _ in items(present.declaration))


def _replace(table: Table, elements: Mapping[str, Mapping[bytes, bytes]]) -> Transaction:
    """Delete and make anew in one transaction: packets meet the old table or the new one."""
    messages = [encode.delete_table(*table.key)]
    for step in _repair(table, elements, None):
        messages += step.messages
    return Transaction(tuple(messages), (_said("replace", f"table {_table_name(table)}"),))


def _repair(
    table: Table, elements: Mapping[str, Mapping[bytes, bytes]], present: ObservedTable | None
) -> Iterator[_Step]:
    """Yield what is to be done to a table that is missing or of the right layout, hooked rules last."""
    encoded = encode.encode_table(table)
    name = _table_name(table)
    if present is None:
        yield _Step([encode.new_table(table)], 0, (_said("add", f"table {name}"),))
        present = _NOTHING
    yield from _declare(table, encoded, present.sets, present.chains)
    yield from _set_steps(table, elements, present)
    changed = [
        each for each, chain in encoded.chains.items() if not same_rules(chain, present.chains.get(each))
    ]
    rules = {each: len(chain.rules) for each, chain in present.chains.items()}
    step = _rewrite(table, encoded, changed, present.sets.keys(), rules)
    if step.messages:
        yield step


def _declare(
    table: Table, encoded: encode.EncodedTable, sets: Container[str], chains: Container[str]
) -> Iterator[_Step]:
    """Yield the sets and chains that are missing.

    A chain that no hook leads to has its rules at once: an element that is added later may lead there, and
    for each chain whose rules look something up in a map the kernel walks all elements that the map has by
    then (nf_tables_bind_set).
    """
    name = _table_name(table)
    for each in encoded.sets:
        if each not in sets:
            yield _Step([encode.new_set(table, each)], 0, (_said("add", f"set {name} {each}"),))
    missing = [each for each in encoded.chains if each not in chains]
    for each in missing:
        yield _Step([encode.new_chain(table, each)], 0, (_said("add", f"chain {name} {each}"),))
    for each in missing:
        if not encoded.chains[each].declaration and encoded.chains[each].rules:
            words = (_said("add", f"rules of chain {name} {each}"),)
            yield _Step(encode.new_rules(table, each), 0, words)


def _rewrite(
    table: Table,
    encoded: encode.EncodedTable,
    changed: Iterable[str],
    sets: Iterable[str],
    chains: Mapping[str, int],
) -> _Step:
    """Return all changes of rules, and the deletion of chains and sets that are none of ours, as one step.

    Args:
        table: as it shall be.
        encoded: the same, encoded.
        changed: chains whose rules are others, those included that `_declare` has made.
        sets: the sets that were there before.
        chains: the chains that were there before, with their numbers of rules.
    """
    family, name = table.key
    messages: list[Message] = []
    changes: list[Change] = []
    # What `_declare` has filled is done; a new base chain gets its rules here.
    changed = [each for each in changed if each in chains or encoded.chains[each].declaration]
    foreign_chains = chains.keys() - encoded.chains.keys()
    foreign_sets = set(sets) - encoded.sets.keys()
    # Rules first: chains and sets can't be deleted while a rule refers to them.
    messages += [
        encode.flush_chain(family, name, each)
        for each in (*changed, *sorted(foreign_chains))
        if chains.get(each)
    ]
    for each in sorted(foreign_sets):
        # A set without a name of its own goes with the rule that used it.
        if not each.startswith("__"):
            messages.append(encode.delete_set(family, name, each))
            changes.append(Change("delete", f"set {_table_name(table)} {each}"))
    for each in sorted(foreign_chains):
        messages.append(encode.delete_chain(family, name, each))
        changes.append(Change("delete", f"chain {_table_name(table)} {each}"))
    for each in changed:
        messages += encode.new_rules(table, each)
        action = "replace" if each in chains else "add"
        changes.append(Change(action, f"rules of chain {_table_name(table)} {each}"))
    return _Step(messages, 0, (lambda: changes,))


def same_rules(wanted: encode.EncodedChain, present: ObservedChain | None) -> bool:
    """Whether a chain has the rules that it should have; a missing one has none."""
    if present is None:
        return not wanted.rules
    if len(wanted.rules) != len(present.rules):
        return False
    for encoded, found in zip(wanted.rules, present.rules, strict=True):
        attributes = dict(items(encoded))
        if attributes.get(encode.RULE_USERDATA, b"") != found.user_data:
            return False
        if not _same_expressions(attributes[encode.RULE_EXPRESSIONS], found.expressions):
            return False
    return True


def _same_expressions(wanted: bytes, found: bytes) -> bool:
    ours, theirs = list(items(wanted)), list(items(found))
    return len(ours) == len(theirs) and all(
        covers(expression, other) for (_, expression), (_, other) in zip(ours, theirs, strict=True)
    )


def covers(wanted: bytes, found: bytes) -> bool:
    """Whether every attribute that we send is in what the kernel dumps, with the same value.

    The kernel adds attributes of its own (handles, counts, defaults); those don't matter. Of attributes that
    are repeated, as in a list, the order counts and the number.
    """
    present: dict[int, list[bytes]] = {}
    for kind, value in items(found):
        present.setdefault(kind, []).append(value)
    seen: dict[int, int] = {}
    offset, end = 0, len(wanted)
    while offset < end:
        length, tagged = _ATTRIBUTE.unpack_from(wanted, offset)
        value, kind = wanted[offset + _ATTRIBUTE.size : offset + length], tagged & ~NLA_F_NESTED
        others = present.get(kind, ())
        place = seen[kind] = seen.get(kind, -1) + 1
        if place >= len(others):
            return False
        other = others[place]
        if not (covers(value, other) if tagged & NLA_F_NESTED else value == other):
            return False
        offset += (length + 3) & ~3
    return all(len(present[kind]) == last + 1 for kind, last in seen.items())


def _set_steps(
    table: Table, elements: Mapping[str, Mapping[bytes, bytes]], present: ObservedTable
) -> Iterator[_Step]:
    changes = []
    for declared in table.sets:
        found, wanted = present.sets.get(declared.name), elements[declared.name]
        current = found.elements if found is not None else {}
        if declared.dynamic or current == wanted:
            continue
        if current is None:
            key = (*table.key, declared.name)
            words = _said("replace", f"all elements of set {_table_name(table)} {key[2]}")
            yield _Step([encode.flush_set(key)], 0, (words,))
        changes.append(SetChange(table, declared, current or {}, wanted))
    yield from _element_steps(changes)


def _element_steps(changes: Iterable[SetChange]) -> Iterator[_Step]:
    """Yield the changes of sets in pieces that are whole in themselves, by the sets' ranks.

    What is deleted and what takes its place (other data for a key, another cut of a range) is in one piece.
    """
    ordered = sorted(changes, key=_RANK)
    for change in ordered:
        yield from _coming(change)
    for change in reversed(ordered):
        if change.current and not change.declared.interval:
            gone = [key for key in change.current if key not in change.wanted]
            for start in range(0, len(gone), _PIECE):
                yield _piece(change.table, change.declared, gone[start : start + _PIECE], {})


_RANK = attrgetter("declared.rank")


def _coming(change: SetChange) -> Sequence[_Step]:
    """Return what is new or has new data; of an interval set also what goes."""
    table, declared, current, wanted = change
    new = [key for key, data in wanted.items() if current.get(key) != data]
    old = [key for key in current if key not in wanted] if declared.interval else []
    old += [key for key in new if key in current]
    if not old and not new:
        return ()
    if len(old) + len(new) <= _PIECE:
        return (_piece(table, declared, old, {key: wanted[key] for key in new}),)
    pieces: list[_Step] = []
    half = encode.padded(encode.width(declared.key)) if declared.interval else 0
    marked = sorted([(key, False) for key in old] + [(key, True) for key in new])
    gone: list[bytes] = []
    come: dict[bytes, bytes] = {}
    reach = b""
    for key, is_new in marked:
        first, last = (key[:half], key[half:]) if half else (key, key)
        if len(gone) + len(come) >= _PIECE and first > reach:
            pieces.append(_piece(table, declared, gone, come))
            gone, come = [], {}
        reach = max(reach, last)
        if is_new:
            come[key] = wanted[key]
        else:
            gone.append(key)
    return (*pieces, _piece(table, declared, gone, come))


def _piece(table: Table, declared: Set, gone: Sequence[bytes], come: Mapping[bytes, bytes]) -> _Step:
    messages: list[Message] = []
    if gone:
        messages += encode.delete_elements(table, declared, gone)
    if come:
        messages += encode.add_elements(table, declared, come)
    return _Step(messages, len(gone) + len(come), (partial(_piece_changes, table, declared, gone, come),))


def _piece_changes(
    table: Table, declared: Set, gone: Sequence[bytes], come: Mapping[bytes, bytes]
) -> Iterator[Change]:
    place = f"set {_table_name(table)} {declared.name}"
    if gone:
        yield from _element_changes("delete", place, declared, dict.fromkeys(gone, b""))
    if come:
        yield from _element_changes("add", place, declared, come)


def _pack(steps: Iterable[_Step]) -> list[Transaction]:
    """Join steps to transactions within the bound."""
    result: list[Transaction] = []
    messages: list[Message] = []
    words: list[Callable[[], Iterable[Change]]] = []
    elements = 0
    for step in steps:
        if messages and elements + step.elements > TRANSACTION_ELEMENTS:
            result.append(Transaction(tuple(messages), tuple(words)))
            messages, words, elements = [], [], 0
        messages += step.messages
        words += step.words
        elements += step.elements
    if messages:
        result.append(Transaction(tuple(messages), tuple(words)))
    return result


def _element_changes(
    action: str, place: str, declared: Set, elements: Mapping[bytes, bytes]
) -> Iterator[Change]:
    """Name each of a few elements; of many, their number and the first ones."""
    named = [
        render_element(declared, key, data if action == "add" else b"")
        for key, data in islice(elements.items(), _NAMED_ELEMENTS)
    ]
    if len(named) == len(elements):
        for name in named:
            yield Change(action, f"element {name} of {place}")
    else:
        yield Change(action, f"{len(elements)} elements of {place}: {', '.join(named)}, ...")


def _said(action: str, subject: str) -> Callable[[], tuple[Change]]:
    return lambda: (Change(action, subject),)


def _table_name(table: Table) -> str:
    return f"{table.family.text} {table.name}"


def _family(number: int) -> str:
    return {each.value: each.text for each in Family}.get(number, str(number))
