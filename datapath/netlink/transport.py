"""A netlink socket: sends batches and dumps, routes answers to requests by sequence number.

Owns framing, acknowledgement and errors; knows no message type beyond netlink's own (linux/netlink.h).
The kernel does all the work of a request inside send(2), so this runs on threads, never on the event loop,
and each socket is used by one thread at a time.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from itertools import count
from operator import itemgetter
from struct import Struct
from typing import TYPE_CHECKING, NamedTuple

from datapath.errors import (
    DatapathError,
    NetlinkDumpInterruptedError,
    NetlinkError,
    NetlinkFormatError,
    NetlinkOverrunError,
    NetlinkTimeoutError,
)
from datapath.netlink.attributes import integer, parse, text
from datapath.netns import entered

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import TracebackType

    from datapath.netlink.template import Template

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12

NLM_F_REQUEST = 0x001
NLM_F_MULTI = 0x002
NLM_F_ACK = 0x004
NLM_F_ECHO = 0x008
NLM_F_DUMP_INTR = 0x010
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLM_F_DUMP = 0x300
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
_REQUEST_ACK = NLM_F_REQUEST | NLM_F_ACK

_NLMSG_NOOP = 1
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_NLMSG_OVERRUN = 4

# As plain integers: the socket module's are enumerations, and `|` of those costs more than the receive.
_AF_NETLINK = int(socket.AF_NETLINK)
_SOCK_RAW = int(socket.SOCK_RAW | socket.SOCK_CLOEXEC)
_MSG_TRUNC = int(socket.MSG_TRUNC)
_MSG_DONTWAIT = int(socket.MSG_DONTWAIT)

_SOL_NETLINK = 270
_NETLINK_ADD_MEMBERSHIP = 1
_NETLINK_CAP_ACK = 10
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33

_NLMSGERR_ATTR_MSG = 1
_NLMSGERR_ATTR_MISS_TYPE = 5

_HEADER = Struct("=IHHII")
_INT = Struct("=i")
_BARE_ACK = Struct("=IHHIIi16x")
_ACK_BYTES = _BARE_ACK.size
_TIMEVAL = Struct("@ll")

SEND_BYTES = 4 << 20
"""Asked of SO_SNDBUF, which bounds one sendmsg: a transaction of nftables can't be split."""
RECEIVE_BYTES = 8 << 20
BATCH_BYTES = 256 << 10
"""A batch is split into sends of at most this many bytes: a thread never sits in the kernel for long."""
ANSWER_SECONDS = 30.0
"""How long one receive waits. The answer is normally there when send returns; RTNL held delays both."""
_ANSWER_TIME = _TIMEVAL.pack(int(ANSWER_SECONDS), int(ANSWER_SECONDS % 1 * 1_000_000))
_DUMP_ATTEMPTS = 5
_BUFFER_BYTES = 64 << 10
"""Dumps come in parts of at most 32 KiB, or of the buffer's size; other answers are far smaller."""
_SMALL_BUFFER_BYTES = 16 << 10


class Message(NamedTuple):
    """A request: nlmsg_type, flags without REQUEST and ACK, and the family's header with the attributes."""

    kind: int
    flags: int
    payload: bytes


_payload = itemgetter(Message._fields.index("payload"))


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, neither error nor acknowledgement; `index` is the request's place in its batch."""

    kind: int
    payload: bytes
    index: int


class Notification(NamedTuple):
    """A message of a multicast group; `port` is the socket that caused it, 0 where the kernel is silent."""

    kind: int
    payload: bytes
    port: int


class Socket:
    """One netlink socket, for use by one thread at a time.

    Args:
        protocol: NETLINK_ROUTE or NETLINK_NETFILTER.
        namespace: descriptor of the network namespace to create the socket in; None is the calling thread's.
        groups: multicast groups to join (RTNLGRP_*, NFNLGRP_*), read with `receive`.
        bulk: whether it needs large buffers and makes dumps; a socket that lives for one pod's dozen messages
            does not.
    """

    def __init__(
        self,
        protocol: int = NETLINK_ROUTE,
        *,
        namespace: int | None = None,
        groups: Iterable[int] = (),
        bulk: bool = True,
    ) -> None:
        if namespace is None:
            self._socket = _open(protocol, tuple(groups), bulk=bulk)
        else:
            with entered(namespace):
                self._socket = _open(protocol, tuple(groups), bulk=bulk)
        self._sequence = 0
        self._room = _BUFFER_BYTES if bulk else _SMALL_BUFFER_BYTES
        self._buffer = memoryview(bytearray(self._room))

    def __enter__(self) -> Socket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    @property
    def port(self) -> int:
        """The socket's address, which notifications name as their cause."""
        return int(self._socket.getsockname()[0])

    def fileno(self) -> int:
        """Return the descriptor, for add_reader."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket; may be repeated."""
        self._socket.close()

    def detach(self) -> int:
        """Give up the socket; returns its descriptor, which the caller has to close."""
        return self._socket.detach()

    def batch(self, messages: Sequence[Message], action: str) -> list[Reply]:
        """Send the messages in order and return the answers that were asked for (NLM_F_ECHO).

        The kernel goes on past a refused message, up to the end of the send (BATCH_BYTES); what is not
        wanted then must be undone by the caller.

        Args:
            messages: any number; only the last of each send is acknowledged, errors come anyway.
            action: what is being done, for the error: "route 10.0.0.0/24 could not be written".

        Raises:
            NetlinkError: the first refused message, by index.
            NetlinkOverrunError: answers were lost.
        """
        replies: list[Reply] = []
        for start, chunk in _chunks(messages):
            answers, errors = self.exchange(chunk, action, start=start)
            if errors:
                raise errors[0]
            replies += answers
        return replies

    def batch_filled(
        self, template: Template, values: Sequence[bytes | int], action: str, lead: Sequence[Message] = ()
    ) -> list[Reply]:
        """Send a template's messages, filled with the values, behind those of `lead`; see `batch`.

        All of them go in one send: they must be few.
        """
        ahead = len(lead)
        number = ahead + template.number
        first = self._reserve(number)
        datagram = template.fill(first + ahead, values)
        if lead:
            datagram = frame(lead, first, None) + datagram
        replies, errors = self._converse(datagram, first, number, number - 1, action)
        if errors:
            raise errors[0]
        return replies

    def batch_collect(self, messages: Sequence[Message], action: str) -> list[NetlinkError]:
        """Send the messages in order and return all refusals with their index; empty when all was done."""
        refused: list[NetlinkError] = []
        for start, chunk in _chunks(messages):
            refused += self.exchange(chunk, action, start=start)[1]
        return refused

    def request(self, message: Message, action: str) -> bytes:
        """Send one request and return the payload of its one answer. Raises NetlinkError."""
        replies, errors = self.exchange((message,), action)
        if errors:
            raise errors[0]
        if not replies:
            raise NetlinkError(errno.ENODATA, action, index=0)
        return replies[0].payload

    def exchange(
        self, messages: Sequence[Message], action: str, *, start: int = 0, acknowledge: int = -1
    ) -> tuple[list[Reply], list[NetlinkError]]:
        """Send all messages in one sendmsg and return every answer and every refusal.

        Args:
            messages: at least one; together within SEND_BYTES.
            action: what is being done, for the errors.
            start: added to each index.
            acknowledge: which message carries NLM_F_ACK, counted from 0; -1 is the last. nfnetlink
                acknowledges no BATCH_END before Linux 6.10, so a transaction names its last real message.

        Raises:
            NetlinkError: the whole send was refused (EMSGSIZE, EPERM).
            NetlinkOverrunError: answers were lost.
        """
        last = acknowledge if acknowledge >= 0 else len(messages) - 1
        first = self._reserve(len(messages))
        return self._converse(frame(messages, first, last), first, len(messages), last, action, start)

    def dump(self, message: Message, action: str) -> list[bytes]:
        """Return the payload of every message that the kernel lists.

        A dump that was disturbed by a change is repeated a few times.

        Raises:
            NetlinkDumpInterruptedError: it was disturbed each time.
            NetlinkOverrunError: parts were lost.
            NetlinkError: the kernel refused it.
        """
        for _ in range(_DUMP_ATTEMPTS):
            payloads = self._dump(message, action)
            if payloads is not None:
                return payloads
        raise NetlinkDumpInterruptedError(
            f"{action}: the table changed during each of {_DUMP_ATTEMPTS} readings"
        )

    def stream(self, message: Message, action: str) -> Iterator[bytes]:
        """Yield the payload of every message that the kernel lists, while it lists them.

        For tables that nobody wants in memory as a whole. A disturbed dump is not repeated: what came or went
        during it may be in it or not. Until the iterator is exhausted the socket serves nothing else; who
        abandons it may use the socket again.

        Raises:
            NetlinkOverrunError: parts were lost.
            NetlinkError: the kernel refused it.
        """
        for payloads, _ in self._parts(message, action):
            yield from payloads

    def receive(self, *, wait: bool = False) -> list[Notification]:
        """Return the notifications of one datagram; without `wait` an empty list when there is none.

        With `wait`, blocks up to ANSWER_SECONDS. Raises NetlinkOverrunError when some were dropped: what they
        told must be read anew.
        """
        datagram = self._receive(0 if wait else _MSG_DONTWAIT)
        if datagram is None:
            return []
        return [
            Notification(kind, payload, port)
            for kind, _, _, port, payload in _messages(datagram)
            if kind > _NLMSG_OVERRUN
        ]

    def _reserve(self, number: int) -> int:
        """Take the sequence numbers of as many messages; return the first."""
        first = self._sequence + 1
        self._sequence += number
        if self._sequence > 0xFFFFFFFF:
            first, self._sequence = 1, number
        return first

    def _converse(
        self, datagram: bytes, first: int, number: int, last: int, action: str, start: int = 0
    ) -> tuple[list[Reply], list[NetlinkError]]:
        """Send messages numbered from `first` and read the answers; the one at `last` is acknowledged."""
        self._send(datagram, action)
        replies: list[Reply] = []
        errors: list[NetlinkError] = []
        # All answers are queued when send returns, so an empty queue is the end even without the ACK:
        # nfnetlink gives none after it refused a transaction as a whole.
        awaited = first + last
        answered = False
        while not answered:
            answer = self._receive(_MSG_DONTWAIT)
            if answer is None:
                break
            if len(answer) == _ACK_BYTES:
                _, kind, _, sequence, _, code = _BARE_ACK.unpack(answer)
                if (kind, sequence, code) == (_NLMSG_ERROR, awaited, 0):
                    answered = True
                    continue
            for kind, _, sequence, _, payload in _messages(answer):
                index = sequence - first
                if not 0 <= index < number:
                    continue
                if kind == _NLMSG_ERROR:
                    code = -_INT.unpack_from(payload)[0]
                    if code:
                        errors.append(
                            NetlinkError(code, action, index=start + index, detail=_detail(payload))
                        )
                    answered = answered or sequence == awaited
                elif kind > _NLMSG_OVERRUN:
                    replies.append(Reply(kind, payload, start + index))
        if errors:
            errors.sort(key=_index)
        elif not answered:
            raise NetlinkError(errno.EPROTO, action, detail="the kernel did not acknowledge")
        return replies, errors

    def _send(self, datagram: bytes, action: str) -> None:
        try:
            self._socket.send(datagram)
        except OSError as error:
            raise NetlinkError(error.errno or errno.EIO, action) from error

    def _dump(self, message: Message, action: str) -> list[bytes] | None:
        """Run one dump; None when it was interrupted."""
        listed: list[bytes] = []
        interrupted = False
        for payloads, disturbed in self._parts(message, action):
            listed += payloads
            interrupted |= disturbed
        return None if interrupted else listed

    def _parts(self, message: Message, action: str) -> Iterator[tuple[list[bytes], bool]]:
        """Run one dump; yield the payloads of each datagram, and whether the table changed meanwhile."""
        self._discard()
        first = self._reserve(1)
        self._send(frame((message._replace(flags=message.flags | NLM_F_DUMP),), first, None), action)
        while True:
            datagram = self._receive(0)
            if datagram is None:
                raise NetlinkTimeoutError(f"{action}: the kernel sent nothing for {ANSWER_SECONDS:.0f} s")
            payloads: list[bytes] = []
            disturbed = False
            for kind, flags, sequence, _, payload in _messages(datagram):
                if sequence != first:
                    continue
                disturbed |= bool(flags & NLM_F_DUMP_INTR)
                if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    code = -_INT.unpack_from(payload)[0] if len(payload) >= _INT.size else 0
                    if code not in (0, errno.EINTR):
                        raise NetlinkError(code, action, detail=_detail(payload, done=kind == _NLMSG_DONE))
                    yield payloads, disturbed or code == errno.EINTR
                    return
                payloads.append(payload)
            yield payloads, disturbed

    def _discard(self) -> None:
        """Drop what an aborted exchange left in the queue: it could hide a dump's end behind ENOBUFS."""
        while self._receive(_MSG_DONTWAIT) is not None:
            pass

    def _receive(self, flags: int) -> bytes | None:
        """Return one datagram; None when there is none now (MSG_DONTWAIT) or came none in time."""
        try:
            length = self._socket.recv_into(self._buffer, self._room, flags | _MSG_TRUNC)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                raise NetlinkOverrunError(
                    "the kernel dropped netlink messages for this socket: read all again"
                ) from error
            raise DatapathError(f"netlink receive failed: {error.strerror}") from error
        if length > self._room:
            raise NetlinkOverrunError(f"a netlink answer of {length} bytes was cut at {self._room}")
        return bytes(self._buffer[:length])


def _open(protocol: int, groups: tuple[int, ...], *, bulk: bool) -> socket.SocketType:
    try:
        # The bare type: what socket.socket adds is of no use here and made of Python.
        opened = socket.SocketType(_AF_NETLINK, _SOCK_RAW, protocol)
    except OSError as error:
        raise DatapathError(f"a netlink socket can't be opened: {error.strerror}") from error
    try:
        opened.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
        opened.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        # A small socket does without what only dumps need; the kernel binds it when it sends.
        if bulk:
            _enlarge(opened)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _ANSWER_TIME)
            if protocol == NETLINK_ROUTE:
                opened.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
        if bulk or groups:
            opened.bind((0, 0))
        for group in groups:
            opened.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
    except OSError as error:
        opened.close()
        raise DatapathError(f"a netlink socket can't be prepared: {error.strerror}") from error
    except BaseException:
        opened.close()
        raise
    return opened


def _enlarge(opened: socket.SocketType) -> None:
    # _FORCE needs CAP_NET_ADMIN in the first user namespace; else the plain option gives what it may.
    for forced, plain, size in (
        (_SO_SNDBUFFORCE, socket.SO_SNDBUF, SEND_BYTES),
        (_SO_RCVBUFFORCE, socket.SO_RCVBUF, RECEIVE_BYTES),
    ):
        try:
            opened.setsockopt(socket.SOL_SOCKET, forced, size)
        except PermissionError:
            opened.setsockopt(socket.SOL_SOCKET, plain, size)


def frame(messages: Sequence[Message], first: int, last: int | None) -> bytes:
    """Return messages as they are sent.

    Args:
        messages: in order.
        first: the sequence number of the first; the others' follow it.
        last: which of them is to be acknowledged, counted from 0.
    """
    awaited = None if last is None else first + last
    parts: list[bytes] = []
    for sequence, (kind, flags, payload), size in zip(
        count(first), messages, map(len, map(_payload, messages)), strict=False
    ):
        bits = flags | _REQUEST_ACK if sequence == awaited else flags | NLM_F_REQUEST
        parts += (_HEADER.pack(16 + size, kind, bits, sequence, 0), payload)
    return b"".join(parts)


def _chunks(messages: Sequence[Message]) -> Iterable[tuple[int, Sequence[Message]]]:
    """Cut a batch into sends of at most BATCH_BYTES, each with the index of its first message."""
    if 16 * len(messages) + sum(map(len, map(_payload, messages))) <= BATCH_BYTES:
        return ((0, messages),) if messages else ()
    return _cut(messages)


def _cut(messages: Sequence[Message]) -> Iterator[tuple[int, Sequence[Message]]]:
    start = size = 0
    for index, message in enumerate(messages):
        length = 16 + len(message.payload)
        if size + length > BATCH_BYTES and index > start:
            yield start, messages[start:index]
            start, size = index, 0
        size += length
    yield start, messages[start:]


def _messages(datagram: bytes) -> Iterator[tuple[int, int, int, int, bytes]]:
    """Yield type, flags, sequence number, port and payload of each message of a datagram."""
    offset, end = 0, len(datagram)
    while offset + 16 <= end:
        length, kind, flags, sequence, port = _HEADER.unpack_from(datagram, offset)
        if length < 16 or offset + length > end:
            raise NetlinkFormatError(
                f"a netlink message claims {length} of the {end - offset} bytes received"
            )
        yield kind, flags, sequence, port, datagram[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def _detail(payload: bytes, *, done: bool = False) -> str:
    """Return the kernel's own words of an error (NETLINK_EXT_ACK with NETLINK_CAP_ACK), or nothing."""
    offset = _INT.size if done else _INT.size + _HEADER.size
    if len(payload) <= offset:
        return ""
    try:
        found = parse(payload, offset)
    except NetlinkFormatError:
        return ""
    words = text(found[_NLMSGERR_ATTR_MSG]) if _NLMSGERR_ATTR_MSG in found else ""
    if _NLMSGERR_ATTR_MISS_TYPE in found:
        words = f"{words or 'missing'}: attribute {integer(found[_NLMSGERR_ATTR_MISS_TYPE])}"
    return words


def _index(error: NetlinkError) -> int:
    return -1 if error.index is None else error.index
