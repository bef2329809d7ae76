"""What the shim answers without a daemon: versions, codes, missing variables, the version in errors."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.functional.shim.program import build

if TYPE_CHECKING:
    from tests.functional.shim.program import Shim


def test_no_command_prints_what_this_is(shim: Shim) -> None:
    done = shim.run("", CNI_COMMAND=None)
    assert (done.exit_code, done.output) == (0, b"")
    assert "Weft" in done.messages
    assert done.messages.count("\n") == 1


@pytest.mark.parametrize(
    ("config", "version"),
    [
        (b'{"cniVersion":"0.4.0"}', "0.4.0"),
        (b'{"cniVersion":"1.1.0"}', "1.1.0"),
        (b"", "1.1.0"),
        (b"nonsense", "1.1.0"),
    ],
)
@pytest.mark.parametrize("name", ["weft", "/opt/cni/bin/loopback"])
def test_version_needs_no_daemon_and_no_variable(shim: Shim, config: bytes, version: str, name: str) -> None:
    nothing: dict[str, None] = dict.fromkeys(
        ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"]
    )
    done = shim.run("VERSION", config, name=name, **nothing)
    assert done.exit_code == 0
    assert json.loads(done.output) == {
        "cniVersion": version,
        "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    }


@pytest.mark.parametrize(
    ("command", "code"), [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50), ("ODD", 11)]
)
@pytest.mark.parametrize("stale", [False, True])
def test_without_a_daemon_each_verb_has_its_code(shim: Shim, command: str, code: int, stale: bool) -> None:
    if stale:  # what a killed daemon leaves
        shim.state.mkdir()
        subprocess.run(
            ["python3", "-c", f"import socket; socket.socket(socket.AF_UNIX).bind({str(shim.socket)!r})"],
            check=True,
        )
    done = shim.run(command, b'{"cniVersion":"0.4.0","name":"weft"}')
    assert done.error["code"] == code
    assert done.error["cniVersion"] == "0.4.0"
    assert "not running" in done.error["msg"]
    assert done.seconds < 1
    assert shim.tombstones == []


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        (["CNI_CONTAINERID"], "[CNI_CONTAINERID]"),
        (["CNI_IFNAME"], "[CNI_IFNAME]"),
        (["CNI_CONTAINERID", "CNI_IFNAME"], "[CNI_CONTAINERID,CNI_IFNAME]"),
    ],
)
def test_a_deletion_of_nothing_is_not_recorded(shim: Shim, missing: list[str], named: str) -> None:
    done = shim.run("DEL", b"{}", name="weft", **dict.fromkeys(missing))
    assert done.error["code"] == 4
    assert f"required env variables {named} missing" in done.error["msg"]
    assert shim.tombstones == []


@pytest.mark.parametrize("command", ["ADD", "DEL"])
def test_text_that_protobuf_cannot_carry_is_refused(shim: Shim, command: str) -> None:
    for odd in (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"):
        done = shim.run(command, CNI_ARGS=odd.decode("utf-8", "surrogateescape"))
        assert done.error["code"] == 4
        assert done.error["details"] == "CNI_ARGS"


@pytest.mark.parametrize(
    ("config", "version"),
    [
        (b'{"prevResult":{"cniVersion":"0.3.1"},"cniVersion":"1.0.0"}', "1.0.0"),
        (b'{"cniVersion":"1.0.0","prevResult":{"cniVersion":"0.3.1"}}', "1.0.0"),
        (b'{"prevResult":{"cniVersion":"0.3.1"}}', "1.1.0"),
        (b'{"a":"\\"cniVersion\\":\\"9.9.9\\"","CNIversion" : "0.4.0"}', "0.4.0"),
        (b'{"cniVersion":"0.4.0","cniVersion":"1.0.0"}', "1.0.0"),
        (b'{"cniVersion":"0.4.0\\u0022"}', "1.1.0"),
        (b'{"cniVersion":"not one"}', "1.1.0"),
        (b'{"cniVersion":"1.0.0.0.0.0.0.0.0.0"}', "1.1.0"),
        (b'{"cniVersion":""}', "1.1.0"),
        (b'{"cniVersion":1.0}', "1.1.0"),
        (b'{"cniVersion":"0.4.0"', "0.4.0"),
        (b'["cniVersion","0.4.0"]', "1.1.0"),
    ],
)
def test_the_error_names_the_version_asked_for(sanitized: Shim, config: bytes, version: str) -> None:
    assert sanitized.run("ADD", config).error["cniVersion"] == version


documents = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text() | st.just("cniVersion"),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.just("cniVersion"), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    before=st.dictionaries(st.text(), documents, max_size=3),
    after=st.dictionaries(st.text(), documents, max_size=3),
    version=st.sampled_from(["0.3.1", "0.4.0", "1.0.0"]),
    indent=st.sampled_from([None, 2]),
)
def test_the_version_is_found_in_any_document(
    sanitized: Shim, before: dict[str, object], after: dict[str, object], version: str, indent: int | None
) -> None:
    others = {key: value for key, value in {**before, **after}.items() if key.lower() != "cniversion"}
    split = len(others) // 2
    document = (
        dict(list(others.items())[:split]) | {"cniVersion": version} | dict(list(others.items())[split:])
    )
    config = json.dumps(document, indent=indent, ensure_ascii=False).encode("utf-8", "surrogatepass")
    assert sanitized.run("ADD", config).error["cniVersion"] == version


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    config=st.lists(
        st.sampled_from(
            [b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b'"cniVersion"', b'"1.0.0"', b" ", b"\0"]
        )
        | st.binary(max_size=5),
        max_size=40,
    ).map(b"".join)
)
def test_no_input_breaks_the_error_object(sanitized: Shim, config: bytes) -> None:
    error = sanitized.run("ADD", config).error
    assert error["code"] == 11


def test_the_makefile_builds_a_static_program(tmp_path: object, shim: Shim) -> None:
    assert (
        b"INTERP"
        not in subprocess.run(["readelf", "-lW", shim.binary], capture_output=True, check=True).stdout
    )
    assert shim.binary.stat().st_mode & 0o7777 == 0o755
    assert shim.binary.stat().st_size < 1 << 20
    build(shim.binary.parent)  # nothing to do, and no error
