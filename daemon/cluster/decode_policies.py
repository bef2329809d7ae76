"""NetworkPolicies as JSON into values of `model`. Pure; raises DecodeError like `decode`.

Rules only ever allow. So what can't be understood is left out, with whatever it may have narrowed: a block of
addresses goes with an exception that can't be read, a rule with a list of peers of which none is left. Less
than was meant may be allowed, never more, and `faults` says so. Only a policy that does not tell which pods
it selects is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

from daemon.cluster.decode import (
    MAX_FAULTS,
    DecodeError,
    interned,
    mapping,
    names,
    prefix,
    protocol,
    shown,
)
from daemon.cluster.model import IPBlock, NetworkPolicy, PodPeer, PolicyPort, PolicyRule
from daemon.cluster.selectors import Operator, Requirement, selector

if TYPE_CHECKING:
    from collections.abc import Callable

    from daemon.cluster.model import PolicyPeer
    from daemon.cluster.selectors import Selector

_INGRESS, _EGRESS = "Ingress", "Egress"
_BOTH = frozenset({_INGRESS, _EGRESS})
_FIELDS = {_INGRESS: ("ingress", "from"), _EGRESS: ("egress", "to")}
_VALUED = (Operator.IN, Operator.NOT_IN)

Part = TypeVar("Part")


def network_policy(raw: Mapping[str, object]) -> NetworkPolicy:
    """A networking.k8s.io/v1 NetworkPolicy.

    Raises:
        DecodeError: which pods it selects can't be understood.
    """
    namespace, own = names(raw)
    spec = mapping(raw, "spec")
    try:
        pods = label_selector(spec.get("podSelector"))
    except DecodeError as error:
        raise DecodeError(f"spec.podSelector: {error}") from error
    faults: list[str] = []
    isolated, ruled = _types(spec, faults)
    return NetworkPolicy(
        namespace=namespace,
        name=own,
        pods=pods,
        ingress=_allowed(spec, _INGRESS, isolated, ruled, faults),
        egress=_allowed(spec, _EGRESS, isolated, ruled, faults),
        faults=tuple(faults[:MAX_FAULTS]),
    )


def label_selector(raw: object) -> Selector:
    """A metav1.LabelSelector; without one, everything is selected.

    Raises:
        DecodeError: a part of it can't be understood.
    """
    if raw is None:
        return selector()
    if not isinstance(raw, Mapping):
        raise DecodeError(f"{shown(raw)} is not a label selector")
    requirements: list[Requirement] = []
    pairs = raw.get("matchLabels")
    if not (pairs is None or isinstance(pairs, Mapping)):
        raise DecodeError(f"matchLabels: {shown(pairs)} is no object")
    for key, value in (pairs or {}).items():
        if not isinstance(value, str):
            raise DecodeError(f"matchLabels: {shown(value)} is not the value of a label")
        requirements.append(Requirement(interned(key), Operator.IN, (interned(value),)))
    requirements += map(_requirement, _list(raw, "matchExpressions"))
    return selector(*requirements)


def _requirement(raw: object) -> Requirement:
    entry = raw if isinstance(raw, Mapping) else {}
    key, values = entry.get("key"), entry.get("values")
    try:
        operator = Operator(entry.get("operator"))
    except ValueError as error:
        raise DecodeError(f"matchExpressions: operator {shown(entry.get('operator'))} is unknown") from error
    if not isinstance(key, str) or not key:
        raise DecodeError("matchExpressions: a key is missing")
    texts = values if isinstance(values, list) else []
    if bool(texts) is not (operator in _VALUED) or not all(isinstance(each, str) for each in texts):
        raise DecodeError(f"matchExpressions: {operator.value} can't have the values {shown(values)}")
    return Requirement(interned(key), operator, tuple(sorted({interned(each) for each in texts})))


def _types(spec: Mapping[str, object], faults: list[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Which directions it isolates, and in which of them its rules count.

    Without policyTypes: ingress, and egress if it has rules for that. With types that are unknown it isolates
    in both, but rules of a direction that is not named might not have been meant.
    """
    types = spec.get("policyTypes")
    if types is None or types == []:
        named = _BOTH if spec.get("egress") else frozenset({_INGRESS})
        return named, named
    named = _BOTH.intersection(
        [each for each in types if isinstance(each, str)] if isinstance(types, list) else ()
    )
    if not isinstance(types, list) or not all(each in named for each in types):
        faults.append(f"spec.policyTypes: {shown(types)} is not a list of Ingress and Egress alone")
        return _BOTH, named
    return named, named


def _allowed(
    spec: Mapping[str, object],
    direction: str,
    isolated: frozenset[str],
    ruled: frozenset[str],
    faults: list[str],
) -> tuple[PolicyRule, ...] | None:
    if direction not in isolated:
        return None
    if direction not in ruled:
        return ()
    return _rules(spec, *_FIELDS[direction], faults)


def _rules(spec: Mapping[str, object], field: str, peers: str, faults: list[str]) -> tuple[PolicyRule, ...]:
    result: list[PolicyRule] = []
    try:
        entries = _list(spec, field)
    except DecodeError as error:
        faults.append(f"spec.{error}")
        return ()
    for number, entry in enumerate(entries):
        place = f"spec.{field}[{number}]"
        try:
            rule = _rule(entry, peers, place, faults)
        except DecodeError as error:
            faults.append(f"{place}: {error}")
            continue
        if rule.peers != () and rule.ports != ():
            result.append(rule)
    return tuple(result)


def _rule(raw: object, peers: str, place: str, faults: list[str]) -> PolicyRule:
    if not isinstance(raw, Mapping):
        raise DecodeError(f"{shown(raw)} is no rule")
    return PolicyRule(_each(raw, peers, _peer, place, faults), _each(raw, "ports", _port, place, faults))


def _each(
    entry: Mapping[str, object],
    field: str,
    decode: Callable[[object], Part],
    place: str,
    faults: list[str],
) -> tuple[Part, ...] | None:
    """The parts of a list that can be understood; None where there is no list or an empty one."""
    values = _list(entry, field)
    if not values:
        return None
    result: dict[Part, None] = {}
    for value in values:
        try:
            result[decode(value)] = None
        except DecodeError as error:
            faults.append(f"{place}.{field}: {error}")
    return tuple(result)


def _list(entry: Mapping[str, object], field: str) -> list[object]:
    """The list in a field, which may be absent; unlike `decode.sequence`, nothing else is taken for empty."""
    value = entry.get(field)
    if value is None:
        return []
    if not isinstance(value, list):
        raise DecodeError(f"{field}: {shown(value)} is no list")
    return value


def _peer(raw: object) -> PolicyPeer:
    entry = raw if isinstance(raw, Mapping) else {}
    block, pods, namespaces = (entry.get(field) for field in ("ipBlock", "podSelector", "namespaceSelector"))
    if block is not None:
        if pods is not None or namespaces is not None:
            raise DecodeError("a peer has both an ipBlock and a selector")
        return _block(block)
    if pods is None and namespaces is None:
        raise DecodeError(f"the peer {shown(raw)} has neither a selector nor an ipBlock")
    return PodPeer(
        label_selector(pods),
        label_selector(namespaces) if namespaces is not None else None,
    )


def _block(raw: object) -> IPBlock:
    if not isinstance(raw, Mapping):
        raise DecodeError(f"ipBlock: {shown(raw)} is no object")
    try:
        return IPBlock(
            prefix(raw.get("cidr"), shortest=0),
            tuple([prefix(each, shortest=0) for each in _list(raw, "except")]),
        )
    except DecodeError as error:
        raise DecodeError(f"ipBlock: {error}") from error


def _port(raw: object) -> PolicyPort:
    if not isinstance(raw, Mapping):
        raise DecodeError(f"{shown(raw)} is no port")
    kind, port, end = protocol(raw.get("protocol")), raw.get("port"), raw.get("endPort")
    if isinstance(port, str) and port and not port.isdigit() and end is None:
        return PolicyPort(kind, 0, 0, interned(port))
    if port is None and end is None:
        return PolicyPort(kind)
    last = port if end is None else end
    if type(port) is not int or type(last) is not int or not 0 < port <= last < 1 << 16:
        raise DecodeError(f"port {shown(port)}{f' to {shown(end)}' if end is not None else ''} is none")
    return PolicyPort(kind, port, last)
