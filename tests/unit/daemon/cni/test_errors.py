"""Error codes and the error object."""

from __future__ import annotations

import json

import pytest

from daemon.cni.errors import CODES, CniError, Code


def test_every_code_is_documented() -> None:
    assert set(CODES) == set(Code)
    assert all(text for text in CODES.values())


def test_codes_of_our_own_start_at_100() -> None:
    reserved = {1, 2, 3, 4, 5, 6, 7, 11, 50, 51}
    assert {int(code) for code in Code} >= reserved
    assert all(code in reserved or code >= 100 for code in Code)


def test_the_object_is_what_the_specification_says() -> None:
    error = CniError(Code.TRY_AGAIN_LATER, "not now", "later")
    assert json.loads(error.to_json("1.0.0")) == {
        "cniVersion": "1.0.0",
        "code": 11,
        "msg": "not now",
        "details": "later",
    }
    assert "details" not in json.loads(CniError(Code.TRY_AGAIN_LATER, "not now").to_json("1.0.0"))


@pytest.mark.parametrize("words", ["netns not found", "Link Not Found", "device not  found here"])
def test_no_failure_reads_as_one_that_runtimes_swallow(words: str) -> None:
    text = CniError(Code.WIRING_FAILED, words, words).to_json("1.0.0").decode()
    assert "not found" not in text.lower()
    assert "missing" in text


def test_text_that_is_no_unicode_is_still_an_object() -> None:
    assert json.loads(CniError(Code.INTERNAL, "bad \udcff byte").to_json("1.0.0"))["code"] == 199
