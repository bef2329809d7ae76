"""The exceptions that the datapath raises; every message says what happened and what to do."""

from __future__ import annotations

import errno
import os


class DatapathError(Exception):
    """Something could not be done to the kernel; the message is meant for an operator."""


class NetlinkError(DatapathError):
    """The kernel refused a netlink message.

    Attributes:
        code: the positive errno value.
        index: position of the refused message in its batch, counted from 0; None when unknown.
        detail: the kernel's own words (extended ACK), empty when it gave none.
    """

    def __init__(self, code: int, action: str, *, index: int | None = None, detail: str = "") -> None:
        self.code = code
        self.index = index
        self.detail = detail
        name = errno.errorcode.get(code, str(code))
        words = f" ({detail})" if detail else ""
        super().__init__(f"{action}: {os.strerror(code)} [{name}]{words}")


class TransactionOutdatedError(NetlinkError):
    """Somebody else changed nftables since the generation a transaction was made for; nothing was changed."""


class NetlinkOverrunError(DatapathError):
    """The kernel dropped notifications or dump parts (ENOBUFS); what is known must be read again in full."""


class NetlinkDumpInterruptedError(DatapathError):
    """The dumped table changed during the dump (NLM_F_DUMP_INTR); the caller reads it again."""


class NetlinkFormatError(DatapathError):
    """A netlink message or attribute could not be encoded or does not have the form that it should."""


class NetlinkTimeoutError(DatapathError):
    """The kernel did not answer in time; what is known must be read again."""


class NamespaceError(DatapathError):
    """A network namespace could not be opened or entered."""


class NotANamespaceError(NamespaceError):
    """The path exists but is no namespace: the runtime's mount did not reach this process, or it is gone."""


class NamespaceGoneError(NamespaceError):
    """There is nothing at the path any more: the sandbox was removed."""


class AttachError(DatapathError):
    """A pod could not be wired; everything done so far was undone."""


class InterfaceExistsError(AttachError):
    """The pod's namespace has an interface of the requested name already."""
