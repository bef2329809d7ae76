"""The way into nftables of one network namespace: reads our tables, commits transactions. Owns its socket.

Used by one thread. Knows no desired state: `plan` decides what is committed.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from datapath.errors import NetlinkError
from datapath.netlink.nfnetlink import read_generation, transact
from datapath.netlink.transport import NETLINK_NETFILTER, Socket
from datapath.nft import observe, policy
from datapath.nft.encode import describe
from datapath.nft.tables import TABLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from datapath.desired import SetKey
    from datapath.netlink.transport import Message
    from datapath.nft.observe import ObservedRuleset
    from datapath.nft.plan import Transaction

OURS = frozenset({TABLE, policy.TABLE})


class Nft:
    """nftables as one thread sees it.

    Args:
        namespace: descriptor of the network namespace; None is the calling thread's.
        names: names of the tables that are ours, in every family.
    """

    def __init__(self, *, namespace: int | None = None, names: frozenset[str] = OURS) -> None:
        self._socket = Socket(NETLINK_NETFILTER, namespace=namespace)
        self._names = names

    def __enter__(self) -> Nft:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; may be repeated."""
        self._socket.close()

    def generation(self) -> int:
        """Return the generation of nftables: another than at the last reading tells of a change."""
        return read_generation(self._socket)

    def read(self) -> ObservedRuleset:
        """Return our tables as they are. Raises NetlinkDumpInterruptedError, NetlinkError."""
        return observe.read(self._socket, self._names)

    def elements(self, key: SetKey) -> Mapping[bytes, bytes]:
        """Return the elements of one set of ours; none where there is no such set. Raises NetlinkError."""
        try:
            return observe.read_elements(self._socket, key) or {}
        except NetlinkError as error:
            if error.code != errno.ENOENT:
                raise
            return {}

    def commit(self, messages: Sequence[Message], action: str, *, generation: int | None = None) -> None:
        """Commit the messages as one transaction: all or nothing.

        Args:
            messages: of `datapath.nft.encode`; none is no transaction.
            action: what is being done, for the error.
            generation: commit only if nobody changed nftables since.

        Raises:
            TransactionOutdatedError: nftables has another generation; nothing was changed.
            NetlinkError: names the object that the kernel refused; nothing was changed.
        """
        if messages:
            transact(self._socket, messages, action, describe=describe, generation=generation)

    def apply(
        self, transactions: Iterable[Transaction], action: str = "nftables could not be changed"
    ) -> int:
        """Commit transactions in order and return their number. Raises as `commit`; the earlier ones stay."""
        done = 0
        for transaction in transactions:
            self.commit(transaction.messages, action)
            done += 1
        return done
