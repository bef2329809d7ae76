"""nftables on its way to what is desired, with a kernel that takes notes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from datapath.desired import Fragment, SetElements
from datapath.errors import NetlinkError
from datapath.fragments import Fragments
from datapath.nft import encode
from datapath.nft.elements import key
from datapath.nft.observe import ObservedRuleset
from datapath.nft.plan import TRANSACTION_ELEMENTS
from datapath.nft.rules import IPV4_ADDR, Family, Set, Table
from datapath.nft.services import ServiceOptions
from datapath.nft.tables import DIRECT, LOCAL, NODES, TableOptions, node_tables
from datapath.ruleset import RulesetSync
from tests.unit.datapath.nft.dumps import dumped

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from datapath.fragments import Touched
    from datapath.netlink.transport import Message

TABLE = (2, "weft")
FEW = ServiceOptions(common=2)
REFUSED = NetlinkError(22, "the test refuses")


class FakeNft:
    """nftables of a namespace that holds what the test says when it is read."""

    def __init__(self, desired: Fragments) -> None:
        self.desired = desired
        self.holds = False
        """Whether a reading finds what is desired; else nothing."""
        self.readings = 0
        self.commits: list[list[str]] = []
        self.refuse = 0
        self.now = 7

    def generation(self) -> int:
        return self.now

    def read(self) -> ObservedRuleset:
        self.readings += 1
        sets = self.desired.sets()
        tables = {name: dumped(table, sets) for name, table in self.desired.tables.items()}
        return ObservedRuleset(self.now, tables if self.holds else {})

    def commit(self, messages: Sequence[Message], _: str) -> None:
        if self.refuse:
            self.refuse -= 1
            raise REFUSED
        self.commits.append([encode.describe(each) for each in messages])
        self.now += 1


class Node:
    """A ruleset in line with its tables, unless `fresh`."""

    def __init__(self, *, fresh: bool = False) -> None:
        self.fragments = Fragments()
        self.nft = FakeNft(self.fragments)
        self.sync = RulesetSync(self.nft, self.fragments)  # type: ignore[arg-type]
        self.tables(FEW)
        if not fresh:
            self.settle()
            self.nft.commits.clear()
            self.nft.readings = 0
            self.nft.holds = True

    def put(self, name: str, fragment: Fragment | None) -> Touched:
        return self.fragments.replace((name,), fragment)

    def tables(self, services: ServiceOptions, vxlan_port: int = 4789) -> None:
        made = node_tables(TableOptions(vxlan_port=vxlan_port, services=services))
        self.sync.touch(self.put("tables", Fragment(tables=made)))

    def elements(self, name: str, numbers: Iterable[int], owner: str = "") -> Touched:
        """Have a set hold these addresses."""
        found = {key(number.to_bytes(4, "big")): b"" for number in numbers}
        return self.put(owner or name, Fragment(elements=(SetElements(TABLE, name, found),)))

    def settle(self) -> None:
        for _ in range(100):
            if self.sync.idle:
                return
            self.sync.step()
        raise AssertionError("it never comes to rest")

    @property
    def done(self) -> list[str]:
        """What was committed, in words."""
        return [words for each in self.nft.commits for words in each]


def test_the_first_step_reads_and_plans_and_the_next_commits() -> None:
    node = Node(fresh=True)
    assert not node.sync.idle
    node.sync.step()
    assert (node.nft.readings, node.nft.commits) == (1, [])
    node.settle()
    assert node.nft.readings == 1
    assert "add table ip weft" in node.done
    assert "add table ip6 weft" in node.done
    assert not node.sync.disturbed()


def test_what_is_in_line_needs_no_commit() -> None:
    node = Node(fresh=True)
    node.nft.holds = True
    node.settle()
    assert (node.nft.readings, node.nft.commits) == (1, [])


def test_an_element_is_committed_in_one_step_without_a_reading() -> None:
    node = Node()
    node.sync.touch(node.elements(NODES, [1]))
    node.sync.step()
    assert node.sync.idle
    assert node.nft.readings == 0
    assert node.nft.commits == [["add elements of set ip weft nodes"]]


def test_what_was_touched_and_is_as_before_is_not_committed() -> None:
    node = Node()
    node.sync.touch(node.elements(NODES, [1]))
    node.sync.touch(node.elements(NODES, []))
    node.settle()
    assert node.nft.commits == []


def test_many_elements_are_committed_piece_by_piece() -> None:
    node = Node()
    node.sync.touch(node.elements(NODES, range(3 * TRANSACTION_ELEMENTS)))
    node.sync.step()
    steps = 1
    while not node.sync.idle:
        assert len(node.nft.commits) == steps - 1
        node.sync.step()
        steps += 1
    assert len(node.nft.commits) == 3
    assert node.nft.readings == 0


def test_more_chains_need_no_reading() -> None:
    node = Node()
    node.tables(ServiceOptions(common=2, sizes=(9,), timeouts=(60,)))
    node.settle()
    assert node.nft.readings == 0
    assert len(node.nft.commits) == 2
    assert "add rule of chain ip weft one-of-9" in node.done
    assert "add rule of chain ip6 weft stick-60" in node.done
    # It is known from then on: the next change starts from there.
    node.nft.commits.clear()
    node.tables(ServiceOptions(common=2, sizes=(9, 10), timeouts=(60,)))
    node.settle()
    assert "add rule of chain ip weft one-of-10" in node.done
    assert not [words for words in node.done if "one-of-9" in words]


def test_chains_come_before_the_elements_that_lead_to_them() -> None:
    node = Node()
    node.sync.touch(node.elements(NODES, [1]))
    node.tables(ServiceOptions(common=2, sizes=(9,)))
    node.settle()
    assert node.nft.readings == 0
    assert node.done.index("add rule of chain ip weft one-of-9") < node.done.index(
        "add elements of set ip weft nodes"
    )


def test_other_rules_need_no_reading_either() -> None:
    node = Node()
    node.tables(FEW, vxlan_port=8472)
    node.settle()
    assert node.nft.readings == 0
    assert "add rule of chain ip weft input" in node.done


def test_tables_come_and_go_without_a_reading() -> None:
    node = Node()
    made = node_tables(TableOptions(services=FEW))
    node.sync.touch(node.put("tables", Fragment(tables=made[:1])))
    node.settle()
    assert node.nft.commits == [["delete table ip6 weft"]]
    node.nft.commits.clear()
    node.tables(FEW)
    node.settle()
    assert node.done[0] == "add table ip6 weft"
    assert not [words for words in node.done if " ip weft " in words]
    assert node.nft.readings == 0


def test_a_table_of_another_layout_is_read_for(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node()
    monkeypatch.setattr("datapath.nft.tables.LAYOUT", 99)
    node.tables(FEW)
    node.settle()
    assert node.nft.readings == 1


def extra(name: str, *sets: str) -> Table:
    """A table of the test's own with these sets of addresses."""
    return Table(Family.IPV4, name, 1, tuple(Set(each, (IPV4_ADDR,)) for each in sets), ())


def test_a_set_that_comes_is_filled_with_what_was_desired_before_it() -> None:
    node = Node()
    held = SetElements((2, "extra"), "one", {key(bytes([192, 0, 2, 1])): b""})
    node.sync.touch(node.put("owner", Fragment(elements=(held,))))
    node.settle()
    assert node.nft.commits == []
    node.sync.touch(node.put("extra", Fragment(tables=(extra("extra", "one"),))))
    node.settle()
    assert node.done == ["add table ip extra", "add set ip extra one", "add elements of set ip extra one"]
    assert node.nft.readings == 0


def test_a_set_that_went_and_comes_again_is_filled_anew() -> None:
    node = Node()
    held = SetElements((2, "extra"), "one", {key(bytes([192, 0, 2, 1])): b""})
    node.sync.touch(node.put("extra", Fragment(tables=(extra("extra", "one", "two"),), elements=(held,))))
    node.settle()
    node.nft.commits.clear()
    for sets, done in (
        (("two",), ["delete set ip extra one"]),
        (("one", "two"), ["add set ip extra one", "add elements of set ip extra one"]),
    ):
        node.sync.touch(node.put("extra", Fragment(tables=(extra("extra", *sets),), elements=(held,))))
        node.settle()
        assert node.done == done
        node.nft.commits.clear()
    assert node.nft.readings == 0


def test_an_attachment_brings_the_table_that_it_needs() -> None:
    node = Node()
    held = SetElements((2, "extra"), "one", {key(bytes([192, 0, 2, 1])): b""})
    node.sync.apply_now(node.put("birth", Fragment(tables=(extra("extra", "one"),), elements=(held,))))
    assert node.done == ["add table ip extra", "add set ip extra one", "add elements of set ip extra one"]
    node.settle()
    assert node.nft.readings == 0


def test_an_attachment_goes_ahead_and_nothing_is_read_for_it() -> None:
    node = Node()
    node.sync.touch(node.elements(NODES, range(3 * TRANSACTION_ELEMENTS)))
    node.sync.step()
    node.sync.step()
    assert len(node.nft.commits) == 1
    node.sync.apply_now(node.elements(LOCAL, [1]))
    assert node.nft.commits[1] == ["add elements of set ip weft local"]
    assert not node.sync.idle
    node.settle()
    assert len(node.nft.commits) == 4
    assert {words for each in node.nft.commits[2:] for words in each} == {"add elements of set ip weft nodes"}
    assert node.nft.readings == 0


def test_an_attachment_that_is_undone_by_what_waits_is_read_for() -> None:
    """Its element was to be deleted; now it stands again, and the deletion is still to come."""
    node = Node()
    node.sync.touch(node.elements(NODES, range(3 * TRANSACTION_ELEMENTS)))
    node.settle()
    node.sync.touch(node.elements(NODES, []))
    node.sync.step()
    node.sync.step()
    node.sync.apply_now(node.elements(NODES, [3 * TRANSACTION_ELEMENTS - 1], owner="attachment"))
    assert not node.sync.idle
    node.settle()
    assert node.nft.readings == 1


def test_an_attachment_in_the_middle_of_a_full_plan_is_read_for_after_it() -> None:
    node = Node(fresh=True)
    node.sync.touch(node.elements(NODES, range(3 * TRANSACTION_ELEMENTS)))
    node.sync.step()
    node.sync.step()
    assert (node.nft.readings, len(node.nft.commits)) == (1, 1)
    node.sync.apply_now(node.elements(LOCAL, [1]))
    assert node.nft.commits[1] == ["add elements of set ip weft local"]
    node.nft.holds = True
    node.settle()
    assert node.nft.readings == 2


def test_before_the_first_reading_an_attachment_waits_for_it() -> None:
    node = Node(fresh=True)
    node.sync.apply_now(node.elements(LOCAL, [1]))
    assert (node.nft.readings, node.nft.commits) == (0, [])
    node.settle()
    assert "add elements of set ip weft local" in node.done


def test_an_attachment_that_is_refused_is_tried_after_a_reading() -> None:
    node = Node()
    node.nft.refuse = 1
    node.nft.holds = False
    node.sync.apply_now(node.elements(LOCAL, [1]))
    assert node.nft.readings == 1
    assert "add elements of set ip weft local" in node.done
    assert node.sync.failure is None


def test_an_attachment_that_is_refused_twice_is_told() -> None:
    node = Node()
    node.nft.refuse = 2
    node.nft.holds = False
    with pytest.raises(NetlinkError):
        node.sync.apply_now(node.elements(LOCAL, [1]))
    assert not node.sync.idle
    node.settle()
    assert node.nft.readings == 2
    assert "add elements of set ip weft local" in node.done


def test_a_refused_change_leads_to_a_reading() -> None:
    node = Node()
    node.nft.refuse = 1
    node.sync.touch(node.elements(NODES, [1]))
    node.settle()
    assert node.nft.readings == 1
    assert node.sync.failure is None


def test_what_is_refused_after_a_reading_waits_for_somebody_to_ask() -> None:
    node = Node(fresh=True)
    node.nft.refuse = 1
    node.settle()
    assert node.sync.failure is REFUSED
    assert node.nft.commits == []
    node.sync.invalidate()
    assert not node.sync.idle
    node.settle()
    assert "add table ip weft" in node.done


def test_our_own_commits_are_no_disturbance() -> None:
    node = Node()
    for number in range(3):
        node.sync.touch(node.elements(NODES, range(number)))
        node.settle()
        node.sync.apply_now(node.elements(DIRECT, range(number)))
        node.tables(ServiceOptions(common=2, sizes=tuple(range(9, 9 + number))))
        node.settle()
        assert not node.sync.disturbed()
    assert node.nft.commits


def test_a_foreign_change_is_noticed_repaired_and_told() -> None:
    node = Node()
    node.nft.now += 1
    assert node.sync.disturbed()
    node.nft.holds = False
    node.sync.invalidate(foreign=True)
    node.settle()
    assert "add table ip weft" in node.done
    assert ("add", "table ip weft") in node.sync.changes
    assert not node.sync.disturbed()


def test_a_foreign_change_between_our_commits_is_noticed() -> None:
    node = Node()
    node.sync.touch(node.elements(NODES, [1]))
    node.nft.now += 1
    node.settle()
    assert node.sync.disturbed()


def test_our_own_doing_is_not_told_as_somebody_elses() -> None:
    node = Node(fresh=True)
    node.settle()
    node.sync.invalidate()
    node.settle()
    assert node.sync.changes == []


def test_nothing_is_asked_while_commits_are_pending() -> None:
    node = Node()
    node.sync.touch(node.elements(NODES, range(3 * TRANSACTION_ELEMENTS)))
    node.sync.step()
    node.nft.now += 1
    assert not node.sync.disturbed()
    node.settle()
    assert node.sync.disturbed()


def test_the_difference_changes_nothing() -> None:
    node = Node()
    assert node.sync.difference() == ()
    node.nft.holds = False
    assert ("add", "table ip weft") in node.sync.difference()
    assert node.nft.commits == []


def new(name: str, *numbers: int) -> SetElements:
    return SetElements(TABLE, name, {key(number.to_bytes(4, "big")): b"" for number in numbers})


def test_new_elements_are_added_before_they_are_desired() -> None:
    node = Node()
    assert node.sync.add_now((new(LOCAL, 1, 2), new(NODES, 3)))
    assert len(node.nft.commits) == 1
    assert len(node.done) == 2
    assert (node.nft.readings, node.sync.disturbed()) == (0, False)
    # To desire them afterwards changes nothing, not to desire them any more deletes them.
    node.sync.apply_now(node.elements(LOCAL, (1, 2)))
    assert len(node.nft.commits) == 1
    node.sync.apply_now(node.elements(LOCAL, ()))
    assert [words.split()[0] for words in node.nft.commits[1]] == ["delete"]


def test_elements_that_are_there_already_are_not_added_in_haste() -> None:
    node = Node()
    node.sync.apply_now(node.elements(LOCAL, (1,)))
    node.nft.commits.clear()
    assert not node.sync.add_now((new(NODES, 5), new(LOCAL, 1)))
    assert not node.sync.add_now((new("none", 5),))
    assert node.nft.commits == []
    # One that is to be deleted is there until then.
    node.sync.touch(node.elements(LOCAL, ()))
    assert not node.sync.add_now((new(LOCAL, 1),))
    node.settle()
    assert node.sync.add_now((new(LOCAL, 1),))


def test_nothing_is_added_in_haste_while_more_is_to_be_done() -> None:
    node = Node(fresh=True)
    assert not node.sync.add_now((new(LOCAL, 1),))
    node.sync.step()
    assert not node.sync.add_now((new(LOCAL, 1),))
    node.settle()
    node.tables(ServiceOptions(common=3))
    assert not node.sync.add_now((new(LOCAL, 1),))
    node.settle()
    node.sync.invalidate()
    assert not node.sync.add_now((new(LOCAL, 1),))


def test_a_refusal_of_new_elements_has_all_read_again() -> None:
    node = Node()
    node.nft.refuse = 1
    assert not node.sync.add_now((new(LOCAL, 1),))
    assert node.nft.commits == []
    node.nft.holds = False
    node.sync.apply_now(node.elements(LOCAL, (1,)))
    assert node.nft.readings == 1
    assert any("local" in words for words in node.done)
