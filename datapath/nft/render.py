"""Renders rule values as text, just as `nft --stateless --terse list table` prints them. Pure.

For people (documentation, differences, support bundles) and for tests, which hold it against nft itself.
Nothing that this returns is ever given to nft at run time.
"""

from __future__ import annotations

import ipaddress
import sys
from typing import TYPE_CHECKING

from datapath.nft import rules
from datapath.nft.elements import parse_verdict, prefix
from datapath.nft.encode import DYNAMIC_ELEMENTS, padded, width
from datapath.nft.rules import (
    AnyOf,
    Code,
    Counter,
    Equals,
    Family,
    Forget,
    InSet,
    Limit,
    Log,
    Lookup,
    MarkBits,
    Masquerade,
    NoTrack,
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
    from collections.abc import Mapping, Sequence

    from datapath.nft.elements import Range
    from datapath.nft.rules import Chain, DataType, Hook, Rule, Selector, Set, Statement, Table

_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "ipv6-icmp", 132: "sctp"}
_ICMPV6_TYPES = {
    1: "destination-unreachable",
    2: "packet-too-big",
    3: "time-exceeded",
    4: "parameter-problem",
    128: "echo-request",
    129: "echo-reply",
    130: "mld-listener-query",
    131: "mld-listener-report",
    132: "mld-listener-done",
    133: "nd-router-solicit",
    134: "nd-router-advert",
    135: "nd-neighbor-solicit",
    136: "nd-neighbor-advert",
    137: "nd-redirect",
    143: "mld2-listener-report",
}
_FLAGS = {
    rules.CT_STATE: {1: "invalid", 2: "established", 4: "related", 8: "new", 64: "untracked"},
    rules.CT_STATUS: {1: "expected", 2: "seen-reply", 4: "assured", 8: "confirmed", 16: "snat", 32: "dnat"},
}
_FIB_TYPES = {1: "unicast", 2: "local", 3: "broadcast", 5: "multicast", 6: "blackhole", 7: "unreachable"}
_TCP_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr")
_PRIORITIES = {-300: "raw", -150: "mangle", 0: "filter", 50: "security"}
_NAMED_WITHIN = 10
_MARK_WIDTH = 8


def render(table: Table, elements: Mapping[str, Mapping[bytes, bytes]] | None = None) -> str:
    """Return a table as text.

    Args:
        table: what to render.
        elements: the elements of its sets by set name, rendered one a line; None leaves all of them
            out, those that belong to the declaration included.
    """
    blocks = [_set(each, None if elements is None else elements.get(each.name, {})) for each in table.sets]
    blocks += [_chain(each, table.family) for each in table.chains]
    body = "\n".join(blocks)
    return f'table {table.family.text} {table.name} {{\n\tcomment "layout {table.layout}"\n{body}}}\n'


def render_rule(rule: Rule, family: Family) -> str:
    """Return one rule as text."""
    words = [_statement(each, family) for each in rule.statements]
    if rule.comment:
        words.append(f'comment "{rule.comment}"')
    return " ".join(words)


def render_element(declared: Set, key: bytes, data: bytes = b"") -> str:
    """Return one element, encoded as `datapath.nft.elements` says, as text; without data, a map's key."""
    half = padded(width(declared.key)) if declared.interval else 0
    if half:
        text = _ranges(declared.key, key[:half], key[half:])
    else:
        text = " . ".join(constant(kind, value) for kind, value in _fields(declared.key, key))
    if not declared.data or not data:
        return text
    if declared.data == (rules.VERDICT,):
        return f"{text} : {_verdict(parse_verdict(data))}"
    return f"{text} : " + " . ".join(constant(kind, value) for kind, value in _fields(declared.data, data))


def render_range(addresses: Range) -> str:
    """Return a range of addresses as a prefix where it is one, else as first-last."""
    kind = rules.IPV4_ADDR if len(addresses.first) == rules.IPV4_ADDR.size else rules.IPV6_ADDR
    return _range(kind, addresses.first, addresses.last)


def constant(kind: DataType, value: bytes) -> str:
    """Return a value of a type as nft writes it."""
    number = int.from_bytes(value, sys.byteorder if kind.host_order else "big")
    if kind in (rules.IPV4_ADDR, rules.IPV6_ADDR):
        return str(ipaddress.ip_address(value))
    if kind == rules.IFNAME:
        return f'"{value.rstrip(bytes(1)).decode()}"'
    if kind == rules.MARK:
        return f"0x{number:0{_MARK_WIDTH}x}"
    if kind == rules.TCP_FLAG:
        return " | ".join(name for bit, name in enumerate(_TCP_FLAGS) if number >> bit & 1)
    names = {rules.INET_PROTO: _PROTOCOLS, rules.ICMPV6_TYPE: _ICMPV6_TYPES, rules.FIB_ADDRTYPE: _FIB_TYPES}
    return names.get(kind, {}).get(number, str(number))


def _set(declared: Set, elements: Mapping[bytes, bytes] | None) -> str:
    lines = [f"\t{'map' if declared.data else 'set'} {declared.name} {{"]
    types = " . ".join(each.name for each in declared.key)
    if declared.data:
        types += " : " + " . ".join(each.name for each in declared.data)
    lines.append(f"\t\ttype {types}")
    if declared.interval:
        lines.append("\t\tflags interval")
    if declared.dynamic:
        lines += [f"\t\tsize {DYNAMIC_ELEMENTS}", "\t\tflags dynamic,timeout"]
    if declared.counted:
        lines.append("\t\tcounter")
    if elements is not None:
        everything = {**elements, **dict(declared.constant)}
        rendered = [render_element(declared, key, data) for key, data in sorted(everything.items())]
        if rendered:
            lines.append("\t\telements = { " + ",\n\t\t\t     ".join(rendered) + " }")
    return "\n".join((*lines, "\t}\n"))


def _chain(chain: Chain, family: Family) -> str:
    lines = [f"\tchain {chain.name} {{"]
    if chain.hook is not None:
        priority = _priority(chain.hook)
        point = chain.hook.point.name.lower()
        lines.append(f"\t\ttype {chain.hook.type} hook {point} priority {priority}; policy accept;")
    lines += [f"\t\t{render_rule(each, family)}" for each in chain.rules]
    return "\n".join((*lines, "\t}\n"))


def _priority(hook: Hook) -> str:
    names = dict(_PRIORITIES)
    if hook.point is rules.HookPoint.PREROUTING:
        names[-100] = "dstnat"
    if hook.point is rules.HookPoint.POSTROUTING:
        names[100] = "srcnat"
    for base, name in names.items():
        offset = hook.priority - base
        if abs(offset) <= _NAMED_WITHIN:
            return name if offset == 0 else f"{name} {'+' if offset > 0 else '-'} {abs(offset)}"
    return str(hook.priority)


def _statement(statement: Statement, family: Family) -> str:  # noqa: C901 - one case per kind
    match statement:
        case Equals(selector, value, negate):
            return f"{selector.text} {_not(negate)}{constant(selector.type, value)}"
        case Starts(selector, value, bits, negate):
            return f"{selector.text} {_not(negate)}{_prefix(selector, value, bits)}"
        case AnyOf(selector, bits):
            return f"{selector.text} {_bits(selector, bits)}"
        case InSet(key, name, negate):
            return f"{_concatenation(key)} {_not(negate)}@{name}"
        case VerdictMap(key, name):
            return f"{_concatenation(key)} vmap @{name}"
        case SetPriority(value):
            return (
                f"meta priority set {_lookup(value) if isinstance(value, Lookup) else _priority_word(value)}"
            )
        case Translate(target, _, source):
            if source:
                return f"snat to {_lookup(target)} fully-random"
            return f"dnat {family.text} to {_lookup(target)}"
        case Remember(name, key, data, timeout):
            element = f"{_concatenation(key)} timeout {_duration(timeout)} : {data.text}"
            return f"update @{name} {{ {element} }}"
        case Forget(name, key, data):
            return f"delete @{name} {{ {_concatenation(key)} : {data.text} }}"
        case Verdict():
            return _verdict(statement)
        case Counter():
            return "counter"
        case Limit(rate, burst):
            return f"limit rate {rate}/second burst {burst} packets"
        case Log(group, prefix, size):
            return f'log prefix "{prefix}" group {group} snaplen {size}'
        case Masquerade():
            return "masquerade fully-random"
        case NoTrack():
            return "notrack"
        case Reject(kind):
            return _reject(kind, family)
        case MarkBits(bits, clear):
            if clear:
                return f"meta mark set meta mark & 0x{~bits & 0xFFFFFFFF:0{_MARK_WIDTH}x}"
            return f"meta mark set meta mark | 0x{bits:0{_MARK_WIDTH}x}"


def _prefix(selector: Selector, value: bytes, bits: int) -> str:
    if selector.type == rules.IFNAME:
        return f'"{value[: bits // 8].decode()}*"'
    return f"{ipaddress.ip_address(prefix(value, bits).first)}/{bits}"


def _verdict(verdict: Verdict) -> str:
    words = {Code.JUMP: "jump ", Code.GOTO: "goto "}
    return words.get(verdict.code, verdict.code.name.lower()) + verdict.chain


def _reject(kind: RejectKind, family: Family) -> str:
    if kind is RejectKind.TCP_RESET:
        return "reject with tcp reset"
    # Port unreachable is IPv4's and IPv6's default, which nft leaves out.
    return "reject" if family is not Family.INET else "reject with icmpx port-unreachable"


def _bits(selector: Selector, bits: int) -> str:
    if selector == rules.META_PRIORITY:
        return f"& {_priority_word(bits)} != none"
    if selector.type == rules.MARK:
        return f"& 0x{bits:0{_MARK_WIDTH}x} != 0x{0:0{_MARK_WIDTH}x}"
    return ",".join(name for bit, name in _FLAGS[selector.type].items() if bits & bit)


def _priority_word(value: int) -> str:
    """Return a word of `meta priority` as nft writes it: a traffic control handle."""
    return f"{value >> 16:x}:{value & 0xFFFF:x}" if value else "none"


def _lookup(lookup: Lookup) -> str:
    return f"{_concatenation(lookup.key)} map @{lookup.map}"


def _duration(seconds: int) -> str:
    """Return seconds as nft writes them, e.g. 1d2h3m4s."""
    parts = []
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        number, seconds = divmod(seconds, size)
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"


def _concatenation(key: Sequence[Selector]) -> str:
    return " . ".join(each.text for each in key)


def _fields(types: Sequence[DataType], encoded: bytes) -> list[tuple[DataType, bytes]]:
    fields = []
    offset = 0
    for kind in types:
        fields.append((kind, encoded[offset : offset + kind.size]))
        offset += padded(kind.size)
    return fields


def _ranges(types: Sequence[DataType], first: bytes, last: bytes) -> str:
    pairs = zip(_fields(types, first), _fields(types, last), strict=True)
    return " . ".join(_range(kind, low, high) for (kind, low), (_, high) in pairs)


def _range(kind: DataType, first: bytes, last: bytes) -> str:
    if first == last:
        return constant(kind, first)
    low, high = int.from_bytes(first, "big"), int.from_bytes(last, "big")
    span = low ^ high
    if kind in (rules.IPV4_ADDR, rules.IPV6_ADDR) and span & (span + 1) == 0 and low & span == 0:
        return f"{constant(kind, first)}/{kind.size * 8 - span.bit_length()}"
    return f"{constant(kind, first)}-{constant(kind, last)}"


def _not(negate: bool) -> str:
    return "!= " if negate else ""
