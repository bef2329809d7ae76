"""How weftctl ends: its exit codes and the errors that lead to them. Owns no output."""

from __future__ import annotations

from enum import IntEnum

import click


class Exit(IntEnum):
    """Exit codes of weftctl; scripts depend on them, so they never change their meaning."""

    OK = 0
    FOUND = 1
    """The command worked and found something: a difference, a leak, a warning, a node that is not ready."""
    USAGE = 2
    """The command line is wrong (click's own code)."""
    UNREACHABLE = 3
    """The daemon does not answer, and the command cannot do without it."""
    FAILED = 4
    """The daemon answered with an error, or what the node keeps could not be read."""


class UnreachableError(click.ClickException):
    """The daemon cannot be reached; the message says where and what to look at."""

    exit_code = Exit.UNREACHABLE


class InUseError(click.ClickException):
    """The command found what speaks against it; the message says what, and how to do it all the same."""

    exit_code = Exit.FOUND


class FailedError(click.ClickException):
    """The command could not be carried out; the message says why and what to do."""

    exit_code = Exit.FAILED
