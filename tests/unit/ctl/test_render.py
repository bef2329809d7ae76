"""How answers look: golden tables, JSON and YAML."""

from __future__ import annotations

import io
import json

import pytest
import yaml

from ctl.render import Column, Report, Source, Table, age, count, plain, write
from weft_rpc import admin_pb2

POOLS = admin_pb2.ShowIpamResponse(
    pools=[
        admin_pb2.Pool(cidr="10.1.1.0/24", size=253, used=12, cooling=1, free=240),
        admin_pb2.Pool(cidr="fd00:1::/64", size=2**64 - 2, used=12, cooling=0, free=2**64 - 14),
    ]
)
COLUMNS = (
    Column("POOL", lambda pool: pool.cidr),
    Column("USED", lambda pool: str(pool.used), right=True, style=lambda _pool: "red"),
    Column("FREE", lambda pool: str(pool.free), wide=True),
)


def printed(report: Report, form: str, **options: bool) -> str:
    stream = io.StringIO()
    write(report, form, stream, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def test_a_table_is_plain_text_when_the_output_is_no_terminal() -> None:
    report = Report(POOLS, [Table(COLUMNS, POOLS.pools)])
    assert printed(report, "table") == "POOL         USED\n10.1.1.0/24    12\nfd00:1::/64    12\n"


def test_wide_adds_columns() -> None:
    assert (
        printed(Report(POOLS, [Table(COLUMNS, POOLS.pools)]), "wide").splitlines()[0]
        == "POOL         USED  FREE"
    )


def test_nothing_is_cut_or_wrapped_when_the_output_is_no_terminal() -> None:
    long = admin_pb2.ShowIpamResponse(pools=[admin_pb2.Pool(cidr="x" * 900, used=1)])
    assert (
        printed(Report(long, [Table(COLUMNS, long.pools)]), "table").splitlines()[1] == "x" * 900 + "     1"
    )


def test_an_empty_table_says_so_and_an_empty_cell_is_a_dash() -> None:
    nothing = admin_pb2.ShowIpamResponse()
    assert printed(Report(nothing, [Table(COLUMNS, nothing.pools, "No pool.")]), "table") == "No pool.\n"
    blank = admin_pb2.ShowIpamResponse(pools=[admin_pb2.Pool()])
    assert printed(Report(blank, [Table(COLUMNS, blank.pools)]), "table").splitlines()[1] == "-        0"


def test_text_from_the_cluster_is_never_taken_for_markup_or_terminal_codes() -> None:
    hostile = admin_pb2.ShowIpamResponse(pools=[admin_pb2.Pool(cidr="[red]\x1b]0;x\x07:smile:")])
    text = printed(Report(hostile, [Table(COLUMNS, hostile.pools)]), "table")
    assert "[red]" in text
    assert ":smile:" in text
    assert "\x1b" not in text
    assert "\x07" not in text


def test_json_has_every_field_and_numbers_as_numbers() -> None:
    value = json.loads(printed(Report(POOLS, []), "json"))
    assert value["source"] == {"kind": "daemon"}
    assert value["pools"][1] == {
        "cidr": "fd00:1::/64",
        "size": 2**64 - 2,
        "used": 12,
        "cooling": 0,
        "free": 2**64 - 14,
    }


def test_json_names_the_source_that_stood_in_for_the_daemon() -> None:
    value = json.loads(printed(Report(POOLS, [], Source("node", "down", 3.5)), "json"))
    assert value["source"] == {"kind": "node", "ageSeconds": 3.5, "reason": "down"}


def test_json_is_one_line_when_watching() -> None:
    assert printed(Report(POOLS, []), "json", compact=True).count("\n") == 1


def test_yaml_says_the_same_as_json() -> None:
    report = Report(POOLS, [])
    assert yaml.safe_load(printed(report, "yaml")) == json.loads(printed(report, "json"))


def test_enumerations_are_words_and_names_are_lower_camel_case() -> None:
    status = admin_pb2.StatusResponse(
        node_name="n1", findings=[admin_pb2.Finding(name="X", level=admin_pb2.LEVEL_WARNING)]
    )
    value = plain(status)
    assert value["nodeName"] == "n1"
    assert value["apiServerConnected"] is False
    assert value["findings"] == [{"name": "X", "level": "warning", "message": "", "key": ""}]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0s"),
        (0.4, "0s"),
        (59.9, "59s"),
        (60, "1m00s"),
        (3599, "59m59s"),
        (3600, "1h00m"),
        (172799, "47h59m"),
        (172800, "2d"),
    ],
)
def test_ages_read_as_people_say_them(seconds: float, text: str) -> None:
    assert age(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (253, "253"), (65534, "65534"), (10**9, "1.0e09"), (2**64 - 2, "1.8e19")]
)
def test_what_nobody_counts_is_rounded(value: int, text: str) -> None:
    assert count(value) == text


def test_colours_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    write(Report(POOLS, [Table(COLUMNS, POOLS.pools)]), "table", terminal)
    assert "\x1b[31m" in terminal.getvalue()
    assert "\x1b" not in printed(Report(POOLS, [Table(COLUMNS, POOLS.pools)]), "table")
