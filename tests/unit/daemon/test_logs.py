"""Log lines: JSON and console, levels, the attachment's context, and what libraries say."""

from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING

import pytest
import structlog

from daemon import logs

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
    yield
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)
    structlog.reset_defaults()


def test_json_lines_carry_the_context() -> None:
    output = io.StringIO()
    logs.configure("info", "json", output)
    log = structlog.get_logger()
    with logs.attachment_context(attachment="abc/eth0", pod="default/web"):
        log.info("served", milliseconds=3)
    log.debug("not shown")
    (line,) = output.getvalue().splitlines()
    entry = json.loads(line)
    assert list(entry)[:3] == ["timestamp", "level", "event"]
    assert entry.pop("timestamp").endswith("Z")
    assert entry == {
        "attachment": "abc/eth0",
        "event": "served",
        "level": "info",
        "milliseconds": 3,
        "pod": "default/web",
    }


def test_an_exception_is_one_json_line_with_its_traceback() -> None:
    output = io.StringIO()
    logs.configure("error", "json", output)
    structlog.get_logger().error("failed", exc_info=ValueError("why"))
    (line,) = output.getvalue().splitlines()
    assert "ValueError: why" in json.loads(line)["exception"]


def test_console_lines_have_no_colours_off_a_terminal() -> None:
    output = io.StringIO()
    logs.configure("debug", "console", output)
    structlog.get_logger().debug("text", key="value")
    assert "text key=value" in output.getvalue()
    assert "\x1b" not in output.getvalue()


@pytest.mark.parametrize(
    ("level", "shown"), [("info", ["warning"]), ("error", []), ("debug", ["info", "warning"])]
)
def test_libraries_are_heard_from_warnings_on(level: str, shown: list[str]) -> None:
    output = io.StringIO()
    logs.configure(level, "json", output)  # type: ignore[arg-type]
    logging.getLogger("some.library").info("%s", "information")
    logging.getLogger("some.library").warning("%s", "trouble")
    entries = [json.loads(line) for line in output.getvalue().splitlines()]
    assert [entry["level"] for entry in entries] == shown
    assert all(entry["library"] == "some.library" for entry in entries)
