"""nfnetlink's frame: the family header, transactions, the generation of nftables. Owns no table and no rule.

A transaction is one sendmsg between BATCH_BEGIN and BATCH_END (linux/netfilter/nfnetlink.h) that the kernel
applies as a whole or not at all. Every committed transaction, whoever sent it, raises the generation by one.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from datapath.errors import NetlinkError, TransactionOutdatedError
from datapath.netlink.attributes import attribute, big_endian, parse
from datapath.netlink.transport import Message

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from datapath.netlink.transport import Socket

NFNL_SUBSYS_NFTABLES = 10
_BATCH_BEGIN = 16
_BATCH_END = 17
_BATCH_GENID = 1
_GETGEN = NFNL_SUBSYS_NFTABLES << 8 | 16
_GEN_ID = 1

_HEADER = struct.Struct("!BBH")
HEADER_BYTES = _HEADER.size


def header(family: int, resource: int = 0) -> bytes:
    """Return struct nfgenmsg."""
    return _HEADER.pack(family, 0, resource)


def nft_kind(message: int) -> int:
    """Return the netlink type of an NFT_MSG_* of linux/netfilter/nf_tables.h."""
    return NFNL_SUBSYS_NFTABLES << 8 | message


def transact(
    socket: Socket,
    messages: Sequence[Message],
    action: str,
    *,
    describe: Callable[[Message], str],
    generation: int | None = None,
) -> None:
    """Commit the messages as one transaction.

    Args:
        socket: of protocol NETLINK_NETFILTER.
        messages: at least one; together within the send buffer (transport.SEND_BYTES).
        action: what is being done, for the error.
        describe: names the object of a message, for the error.
        generation: commit only if nftables still has this generation.

    Raises:
        TransactionOutdatedError: somebody else committed since `generation`; nothing was changed.
        NetlinkError: a message was refused and nothing was changed. `index` counts in `messages`.
    """
    begin = _BEGIN
    if generation is not None:
        expected = attribute(_BATCH_GENID, generation.to_bytes(4, "big"))
        begin = begin._replace(payload=begin.payload + expected)
    # The kernel acknowledges no BATCH_END before 6.10, so the last real message asks for it.
    _, errors = socket.exchange((begin, *messages, _END), action, acknowledge=len(messages))
    if not errors:
        return
    first = errors[0]
    if first.code == errno.ERESTART:
        raise TransactionOutdatedError(first.code, f"{action}: nftables was changed meanwhile") from first
    # An error of BATCH_BEGIN or BATCH_END (no permission, say) concerns no object.
    index = None if first.index is None or not 0 < first.index <= len(messages) else first.index - 1
    where = action if index is None else f"{action}: {describe(messages[index])}"
    raise NetlinkError(first.code, where, index=index, detail=first.detail) from first


_BEGIN = Message(_BATCH_BEGIN, 0, header(0, NFNL_SUBSYS_NFTABLES))
_END = Message(_BATCH_END, 0, header(0, NFNL_SUBSYS_NFTABLES))


def read_generation(socket: Socket) -> int:
    """Return the generation of nftables in the socket's namespace (15 us)."""
    answer = socket.request(Message(_GETGEN, 0, header(0)), "the generation of nftables could not be read")
    return big_endian(parse(answer, HEADER_BYTES)[_GEN_ID])
