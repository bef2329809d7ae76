"""One run of weftctl: options that all commands share, where answers come from, watching them change."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from ctl.connection import SOCKET, TIMEOUT_SECONDS, Connection
from ctl.exits import Exit, UnreachableError
from ctl.render import FORMATS, Source, write

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

    from ctl.node import NodeState
    from ctl.render import Format, Report

Answer = TypeVar("Answer", bound="Message")
Command = TypeVar("Command", bound=Callable[..., Any])
DEFAULT_INTERVAL = 2.0


@dataclass(slots=True)
class Invocation:
    """What the shared options say; given before the command or after it, the latter wins.

    Attributes:
        socket: path of the admin socket.
        timeout: seconds to wait for an answer.
        form: how to print.
        interval: seconds between two looks with `--watch`; None looks once.
    """

    socket: str = SOCKET
    timeout: float = TIMEOUT_SECONDS
    form: Format = "table"
    interval: float | None = None
    _loads: int = field(default=0, repr=False)

    def ask(self, method: str, request: Message, answer: type[Answer]) -> Answer:
        """Asks the daemon; see `Connection.call` for the errors."""
        return Connection(self.socket, self.timeout).call(method, request, answer)

    def listen(self, method: str, request: Message, answer: type[Answer]) -> Iterator[Answer]:
        """Asks the daemon for answers that come as they happen; see `Connection.stream` for the errors."""
        return Connection(self.socket, self.timeout).stream(method, request, answer)

    def ask_or_read(
        self, method: str, request: Message, answer: type[Answer], read: Callable[[NodeState], Answer]
    ) -> tuple[Answer, Source]:
        """Asks the daemon, or reads the same from the node when it is down; says on standard error which.

        Raises:
            FailedError: the daemon answered with an error, or what the node keeps cannot be read.
        """
        try:
            return self.ask(method, request, answer), Source()
        except UnreachableError as error:
            from ctl.node import NodeState

            state = NodeState(os.path.dirname(os.path.abspath(self.socket)))
            found = read(state)
            source = Source("node", error.message, state.age_seconds)
            self._say_source(source)
            return found, source

    def _say_source(self, source: Source) -> None:
        if self._loads > 1:
            return
        from ctl.render import age

        when = "" if source.age_seconds is None else f", last written {age(source.age_seconds)} ago"
        click.echo(f"{source.reason}\nReading the node's own state instead{when}.", err=True)

    def show(self, load: Callable[[], Report]) -> NoReturn:
        """Prints what `load` finds, repeatedly with `--watch`, and ends the process with the exit code."""
        if self.interval is None:
            self._loads = 1
            report = load()
            write(report, self.form)
            sys.exit(Exit.FOUND if report.failed else Exit.OK)
        try:
            self._watch(load, self.interval)
        except KeyboardInterrupt:
            sys.exit(Exit.OK)

    def _watch(self, load: Callable[[], Report], interval: float) -> NoReturn:
        people = self.form in {"table", "wide"}
        clear = "\x1b[H\x1b[2J\x1b[3J" if people and sys.stdout.isatty() else ""
        while True:
            self._loads += 1
            try:
                report = load()
            except UnreachableError as error:
                click.echo(f"{clear}Error: {error.message}", err=not clear)
            else:
                click.echo(clear, nl=False)
                write(report, self.form, compact=True)
                if people and not clear:
                    click.echo()
            time.sleep(interval)


def _remember(name: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Makes an option's callback that keeps its value in the Invocation unless it was not given."""

    def callback(context: click.Context, _parameter: click.Parameter, value: Any) -> Any:
        if value is not None:
            setattr(context.ensure_object(Invocation), name, value)
        return value

    return callback


def _option(name: str, *declarations: str, **settings: Any) -> Callable[[Command], Command]:
    return click.option(*declarations, expose_value=False, callback=_remember(name), **settings)


def shared_options(command: Command) -> Command:
    """Gives a command the options that all commands have."""
    for option in (
        _option(
            "timeout",
            "--timeout",
            type=click.FloatRange(min=0.1),
            metavar="SECONDS",
            help="Wait this long. [10]",
        ),
        _option("socket", "--socket", metavar="PATH", help=f"Admin socket of the daemon. [{SOCKET}]"),
        _option("form", "-o", "--output", type=click.Choice(FORMATS), help="How to print. [table]"),
    ):
        command = option(command)
    return command


def watch_option(command: Command) -> Command:
    """Gives a command `--watch [SECONDS]`."""
    option = _option(
        "interval",
        "-w",
        "--watch",
        is_flag=False,
        flag_value=DEFAULT_INTERVAL,
        type=click.FloatRange(min=0.1),
        metavar="[SECONDS]",
        help="Look again every 2 (or so many) seconds until interrupted.",
    )
    return option(command)
