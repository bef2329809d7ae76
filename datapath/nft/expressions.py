"""Encodes a rule's statements to nftables expressions. Owns the choice of registers. Pure.

Register numbers count in 4-byte words and are written as the kernel dumps them: the first word of each
16-byte register by the register's old number.
"""

from __future__ import annotations

import struct
from itertools import accumulate
from typing import TYPE_CHECKING

from datapath.netlink.attributes import attribute, be16, be32, be64, nest, string, u8
from datapath.nft.rules import (
    L4PROTO,
    AnyOf,
    Counter,
    Ct,
    Equals,
    Family,
    Fib,
    Forget,
    InSet,
    Limit,
    Log,
    Lookup,
    MarkBits,
    Masked,
    Masquerade,
    Meta,
    NoTrack,
    Payload,
    Protocol,
    RandomNumber,
    Reject,
    RejectKind,
    Remember,
    SetPriority,
    Starts,
    Translate,
    Verdict,
    VerdictMap,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from datapath.nft.rules import (
        Code,
        Rule,
        Selector,
        Statement,
    )

_EXPR_NAME, _EXPR_DATA = 1, 2
_DATA_VALUE, _DATA_VERDICT = 1, 2
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_CMP_EQ, _CMP_NEQ = 0, 1
_REGISTER_VERDICT = 0
_LOOKUP_INVERT = 1
_RANDOM_FULLY = 0x10
_META_PRIORITY, _META_MARK = 2, 3
_NAT_SOURCE, _NAT_DESTINATION = 0, 1
_MAP_IPS, _MAP_PORTS = 1, 2
_UPDATE, _DELETE = 1, 2
_NUMGEN_RANDOM = 1
_ICMP_PORT_UNREACHABLE, _ICMPV6_PORT_UNREACHABLE = 3, 4
_NETWORK_HEADER_BITS = 8
_HOST_WORD = struct.Struct("=I")


def expressions(rule: Rule, family: Family) -> Iterator[bytes]:
    """Yield a rule's expressions, each as the content of an NFTA_LIST_ELEM.

    Raises ValueError when a value does not fit its selector.
    """
    known: Protocol | None = None
    if Reject(RejectKind.TCP_RESET) in rule.statements:  # where nft has it
        yield from _is_protocol(known := Protocol.TCP)
    for statement in rule.statements:
        needed = _protocol(statement)
        if needed is not None and needed is not known:
            yield from _is_protocol(known := needed)
        yield from _statement(statement, family)


def register(word: int) -> int:
    """Return the number of the register that starts at a 4-byte word (NFT_REG_*)."""
    return 1 + word // 4 if word % 4 == 0 else 8 + word


def _is_protocol(protocol: Protocol) -> Iterator[bytes]:
    yield from _load((L4PROTO,))
    yield _compare(bytes([protocol]), negate=False)


def _protocol(statement: Statement) -> Protocol | None:
    """Return the transport protocol without which the statement's bytes mean nothing."""
    if isinstance(statement, InSet | VerdictMap | Forget):
        selectors: Sequence[Selector] = statement.key
    elif isinstance(statement, Equals | Starts | AnyOf):
        selectors = (statement.selector,)
    else:
        return None
    needed = {each.protocol for each in selectors if isinstance(each, Payload) and each.protocol is not None}
    if len(needed) > 1:
        raise ValueError(f"one key can't be of two transport protocols: {selectors}")
    return needed.pop() if needed else None


def _statement(statement: Statement, family: Family) -> Iterator[bytes]:  # noqa: C901 - one case per kind
    match statement:
        case Equals(selector, value, negate):
            if len(value) != selector.type.size:
                raise ValueError(f"{selector.text} is {selector.type.size} bytes wide, not {len(value)}")
            yield from _load((selector,))
            yield _compare(value, negate=negate)
        case Starts():
            yield from _starts(statement)
        case AnyOf(selector, bits):
            yield from _load((selector,))
            yield _bitwise(_HOST_WORD.pack(bits), bytes(4))
            yield _compare(bytes(4), negate=True)
        case InSet(key, name, negate):
            yield from _load(key)
            yield _lookup(name, _LOOKUP_INVERT if negate else 0)
        case VerdictMap(key, name):
            yield from _load(key)
            yield _lookup(name, 0, be32(3, _REGISTER_VERDICT))
        case SetPriority(value):
            if isinstance(value, Lookup):
                yield from _look_up(value)
            else:
                constant = nest(2, attribute(_DATA_VALUE, _HOST_WORD.pack(value)))
                yield _expression("immediate", be32(1, register(0)), constant)
            yield _expression("meta", be32(2, _META_PRIORITY), be32(3, register(0)))
        case Translate():
            yield from _translate(statement, family)
        case Remember(name, key, data, timeout):
            yield from _dynamic(_UPDATE, name, key, data, be64(6, timeout * 1000))
        case Forget(name, key, data):
            yield from _dynamic(_DELETE, name, key, data)
        case Verdict(code, chain):
            yield _verdict(code, chain)
        case Counter():
            yield _expression("counter")
        case Limit(rate, burst):
            yield _expression("limit", be64(1, rate), be64(2, 1), be32(3, burst))
        case Log(group, prefix, size):
            yield _expression("log", be16(1, group), string(2, prefix), be32(3, size))
        case Masquerade():
            yield _expression("masq", be32(1, _RANDOM_FULLY))
        case NoTrack():
            yield _expression("notrack")
        case Reject(kind):
            yield _reject(kind, family)
        case MarkBits(bits, clear):
            keep = _HOST_WORD.pack(~bits & 0xFFFFFFFF)
            yield _expression("meta", be32(1, register(0)), be32(2, _META_MARK))
            yield _bitwise(keep, bytes(4) if clear else _HOST_WORD.pack(bits))
            yield _expression("meta", be32(2, _META_MARK), be32(3, register(0)))


def _load(selectors: Sequence[Selector], first: int = 0) -> Iterator[bytes]:
    """Load selectors into consecutive registers from that 4-byte word on."""
    words = accumulate(((each.type.size + 3) // 4 for each in selectors), initial=first)
    for selector, word in zip(selectors, words, strict=False):
        target = be32(1, register(word))
        match selector:
            case Payload(_, kind, base, offset):
                yield _expression("payload", target, be32(2, base), be32(3, offset), be32(4, kind.size))
            case Meta(_, _, key):
                yield _expression("meta", target, be32(2, key))
            case Ct(_, _, key):
                yield _expression("ct", target, be32(2, key))
            case Fib(_, _, flags, result):
                yield _expression("fib", target, be32(2, result), be32(3, flags))
            case RandomNumber(below, offset):
                yield _expression("numgen", target, be32(2, below), be32(3, _NUMGEN_RANDOM), be32(4, offset))
            case Masked(inner, mask):
                yield from _load((inner,), word)
                yield _bitwise(_HOST_WORD.pack(mask), bytes(4), word)


def _look_up(lookup: Lookup, first: int = 0) -> Iterator[bytes]:
    """Load what a map holds into the registers from that word on; the key goes through the same."""
    yield from _load(lookup.key, first)
    yield _lookup(lookup.map, 0, be32(3, register(first)), first)


def _translate(statement: Translate, family: Family) -> Iterator[bytes]:
    yield from _look_up(statement.target)
    address, flags = register(0), _MAP_IPS
    parts = [be32(3, address), be32(4, address)]
    if statement.port:
        port = register(4 if family is Family.IPV6 else 1)
        parts += [be32(5, port), be32(6, port)]
        flags |= _MAP_PORTS
    if statement.source:
        flags |= _RANDOM_FULLY
    kind = _NAT_SOURCE if statement.source else _NAT_DESTINATION
    yield _expression("nat", be32(1, kind), be32(2, family), *parts, be32(7, flags))


def _dynamic(
    operation: int, name: str, key: Sequence[Selector], data: Selector, *options: bytes
) -> Iterator[bytes]:
    yield from _load((*key, data))
    behind = register(sum((each.type.size + 3) // 4 for each in key))
    where = string(1, name) + be32(3, operation) + be32(4, register(0)) + be32(5, behind)
    yield _expression("dynset", where, *options)


def _starts(statement: Starts) -> Iterator[bytes]:
    """Whole bytes are compared as a shorter load or a shorter comparison, other prefixes through a mask."""
    selector, value, bits = statement.selector, statement.value, statement.bits
    size = selector.type.size
    if not 0 < bits < size * 8:
        raise ValueError(f"{selector.text} is {size * 8} bits wide: {bits} is no prefix of it")
    whole, rest = divmod(bits, 8)
    if isinstance(selector, Payload) and rest == 0:
        shorter = be32(4, whole)
        yield _expression(
            "payload",
            be32(1, register(0)),
            be32(2, selector.base),
            be32(3, selector.offset),
            shorter,
        )
        yield _compare(value[:whole], negate=statement.negate)
    elif rest == 0:
        yield from _load((selector,))
        yield _compare(value[:whole], negate=statement.negate)
    else:
        mask = (((1 << bits) - 1) << (size * 8 - bits)).to_bytes(size, "big")
        yield from _load((selector,))
        yield _bitwise(mask, bytes(size))
        yield _compare(bytes(a & b for a, b in zip(value, mask, strict=True)), negate=statement.negate)


def _verdict(code: Code, chain: str) -> bytes:
    parts = be32(_VERDICT_CODE, code & 0xFFFFFFFF) + (string(_VERDICT_CHAIN, chain) if chain else b"")
    return _expression("immediate", be32(1, _REGISTER_VERDICT), nest(2, nest(_DATA_VERDICT, parts)))


def _compare(value: bytes, *, negate: bool) -> bytes:
    operation = be32(2, _CMP_NEQ if negate else _CMP_EQ)
    return _expression("cmp", be32(1, register(0)), operation, nest(3, attribute(_DATA_VALUE, value)))


def _bitwise(mask: bytes, xor: bytes, word: int = 0) -> bytes:
    """The register at a word = that register & mask ^ xor."""
    return _expression(
        "bitwise",
        be32(1, register(word)),
        be32(2, register(word)),
        be32(3, len(mask)),
        nest(4, attribute(_DATA_VALUE, mask)),
        nest(5, attribute(_DATA_VALUE, xor)),
        be32(6, 0),
    )


def _lookup(name: str, flags: int, target: bytes = b"", word: int = 0) -> bytes:
    return _expression("lookup", string(1, name), be32(2, register(word)), target, be32(5, flags))


def _reject(kind: RejectKind, family: Family) -> bytes:
    if kind is RejectKind.TCP_RESET:
        return _expression("reject", be32(1, kind))
    code = _ICMPV6_PORT_UNREACHABLE if family is Family.IPV6 else _ICMP_PORT_UNREACHABLE
    return _expression("reject", be32(1, kind), u8(2, code))


def _expression(name: str, *attributes: bytes) -> bytes:
    content = string(_EXPR_NAME, name)
    return content + nest(_EXPR_DATA, *attributes) if attributes else content
