"""JSON as Go reads it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.cni.document import read, shown
from daemon.cni.errors import CniError, Code


@pytest.mark.parametrize("text", [b'{"cniversion": "1"}', b'{"CNIVERSION": "1"}', b'{"cniVersion": "1"}'])
def test_case_does_not_matter(text: bytes) -> None:
    assert read(text).text("cniVersion") == "1"


def test_the_last_of_equal_keys_wins() -> None:
    assert read(b'{"name": "a", "NAME": "b", "name": "c", "Name": "d"}').text("name") == "d"


def test_go_folds_beyond_ascii() -> None:
    assert read('{"type\u017f": 1, "\u212aey": "x"}'.encode()).text("key") == "x"


def test_null_is_absent_but_known_to_be_there() -> None:
    document = read(b'{"name": null, "list": null, "object": null, "number": null}')
    assert document.text("name", "default") == "default"
    assert document.children("list") == []
    assert document.child("object").names() == ()
    assert document.number("number") is None
    assert document.has("name")
    assert not document.has("other")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b'"x"',
        b"null",
        b"{} {}",
        b"{'a': 1}",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"n": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_object_is_refused(text: bytes) -> None:
    with pytest.raises(CniError) as caught:
        read(text)
    assert caught.value.code is Code.DECODING_FAILURE


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b'{"name": 1}', "name"),
        (b'{"number": "1"}', "number"),
        (b'{"number": true}', "number"),
        (b'{"number": 1.5}', "number"),
        (b'{"object": []}', "object"),
        (b'{"list": {}}', "list"),
        (b'{"list": [1]}', r"list\[0\]"),
        (b'{"list": [{"inner": 1}]}', r"list\[0\].inner"),
        (b'{"texts": ["a", 1]}', r"texts\[1\]"),
    ],
)
def test_a_wrong_type_is_named_with_its_place(text: bytes, name: str) -> None:
    def everything() -> None:
        document = read(text)
        document.text("name")
        document.number("number")
        document.child("object")
        document.texts("texts")
        for child in document.children("list"):
            child.text("inner")

    with pytest.raises(CniError, match=name) as caught:
        everything()
    assert caught.value.code is Code.DECODING_FAILURE


def test_lone_surrogates_and_bad_bytes_become_encodable() -> None:
    assert read(b'{"name": "a\\ud800b"}').text("name").encode()
    assert read(b'{"name": "a\xffb"}').text("name") == "a\ufffdb"
    assert read('{"name": "é😀"}'.encode()).text("name") == "é😀"


@given(st.binary(max_size=200))
def test_bytes_never_cause_another_error(text: bytes) -> None:
    try:
        read(text)
    except CniError as error:
        assert error.code is Code.DECODING_FAILURE  # noqa: PT017 - most bytes are no JSON, some are


def test_shown_values_are_short() -> None:
    assert shown({"a": 1}) == '{"a": 1}'
    assert len(shown("x" * 1000)) == 200
    assert shown(object()).startswith("<object")
