"""Answers why a flow passes or does not: which policies say so at either end, and whether the kernel agrees.

Asks the compiled values that program the kernel (`daemon.compile.policy_verdict`), and then the kernel about
the rules and elements that decide this flow. Only this node's part is answered. Owns what the ends may be
called, and what is told when a question can't be answered here.
"""

from __future__ import annotations

import asyncio
import ipaddress
from typing import TYPE_CHECKING, NamedTuple

from daemon.compile.policy_verdict import Flow, Reason, accepts, verdict
from daemon.compile.policy_words import rule_words
from datapath import text
from datapath.nft.elements import prefix
from datapath.policy import Direction
from weft_rpc import admin_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from daemon.admin.sources import PolicySources
    from daemon.cluster.model import Node
    from daemon.compile.policy_verdict import Decision

_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
_ICMP = {4: 1, 16: 58}
_SECOND_LOOK = 0.25
"""Seconds until a difference is looked at again: a change under way is through by then."""
_WITHOUT_KERNEL = frozenset({Reason.SELF, Reason.OWN_NODE})
"""What passes for reasons that no policy's rules know of."""


class QuestionError(Exception):
    """The question can't be answered here; the message says why and what to do."""


class _End(NamedTuple):
    """Who is at one end: as it was asked for, and its addresses."""

    asked: str
    addresses: tuple[bytes, ...]


class Question:
    """One question about one flow."""

    def __init__(
        self,
        source: PolicySources,
        nodes: Mapping[str, Node],
        node_name: str,
        request: admin_pb2.ExplainPolicyRequest,
    ) -> None:
        self._source = source
        self._nodes = nodes
        self._node_name = node_name
        self._request = request

    async def answer(self) -> admin_pb2.ExplainPolicyResponse:
        """Returns the verdict for each family that both ends have.

        Raises:
            QuestionError: an end is not known, or it is not this node that decides.
            DatapathError: the kernel could not be read.
        """
        flows = self._flows()
        return admin_pb2.ExplainPolicyResponse(verdicts=[await self._verdict(flow) for flow in flows])

    def _flows(self) -> list[Flow]:
        request = self._request
        ends = self._end(request.source), self._end(request.destination)
        pairs = [
            (source, destination)
            for source in ends[0].addresses
            for destination in ends[1].addresses
            if len(source) == len(destination)
        ]
        if not pairs:
            raise QuestionError(
                f"{ends[0].asked} and {ends[1].asked} have no addresses of one family: nothing "
                " can go from the one to the other"
            )
        here = [each for pair in pairs for each in pair if self._source.model.subject(each) is not None]
        if not here:
            raise QuestionError(self._elsewhere(ends))
        if request.protocol == "icmp":
            return [Flow(*pair, _ICMP[len(pair[0])]) for pair in pairs]
        protocol = _PROTOCOLS.get(request.protocol)
        if protocol is None or not 0 < request.port < 65536:
            raise QuestionError(
                f"{request.port}/{request.protocol} is no port: give a number from 1 to 65535 and tcp, udp "
                "or sctp, or icmp alone"
            )
        return [Flow(*pair, protocol, request.port) for pair in pairs]

    def _end(self, asked: str) -> _End:
        if "/" not in asked:
            try:
                return _End(asked, (ipaddress.ip_address(asked).packed,))
            except ValueError as error:
                raise QuestionError(f"{asked} is neither NAMESPACE/NAME of a pod nor an address") from error
        subjects = [each for each in self._source.model.subjects.values() if each.pod == asked]
        if subjects:
            # Of a pod that is replaced by one of its name, the sandbox of before may not be gone yet.
            return _End(asked, subjects[-1].addresses)
        pod = self._source.pods.get(asked) or self._source.remote_pods.get(asked)
        if pod is None:
            raise QuestionError(
                f"no pod {asked} is known to this node ({self._node_name}), which knows pods of other nodes "
                "only while a policy here needs them: give its address (kubectl get pod -o wide), or ask on "
                "its node"
            )
        if pod.host_network:
            raise QuestionError(
                f"pod {asked} uses its node's network, where policies don't select it: give the address of "
                "its node"
            )
        if not pod.ips or pod.finished:
            raise QuestionError(f"pod {asked} has no address {'any more' if pod.finished else 'yet'}")
        return _End(asked, pod.ips)

    def _elsewhere(self, ends: tuple[_End, _End]) -> str:
        """Says whom to ask where neither end is a pod of this node."""
        places = dict.fromkeys(name for end in ends for name in self._places(end))
        where = (
            f"ask on {' and on '.join(places)}"
            if places
            else "ask on the node of either pod (kubectl get pod -o wide)"
        )
        return (
            f"neither {ends[0].asked} nor {ends[1].asked} is a pod of this node ({self._node_name}), and "
            f"each end is decided by its own: {where}"
        )

    def _places(self, end: _End) -> Iterator[str]:
        for name, node in self._nodes.items():
            for address in end.addresses:
                for cidr in node.pod_cidrs:
                    if len(cidr.address) != len(address) or name == self._node_name:
                        continue
                    first, last = prefix(*cidr)
                    if first <= address <= last:
                        yield f"node {name}"

    async def _verdict(self, flow: Flow) -> admin_pb2.FlowVerdict:
        found = verdict(self._source.model, flow)
        decisions = {Direction.EGRESS: found.egress, Direction.INGRESS: found.ingress}
        return admin_pb2.FlowVerdict(
            family="IPv4" if len(flow.source) == 4 else "IPv6",
            source=text.address(flow.source),
            destination=text.address(flow.destination),
            allowed=found.allowed,
            ends=[await self._end_verdict(flow, *each) for each in decisions.items()],
        )

    async def _end_verdict(
        self, flow: Flow, direction: Direction, decision: Decision | None
    ) -> admin_pb2.EndVerdict:
        if decision is None:
            return admin_pb2.EndVerdict(
                direction=direction.value,
                allowed=True,
                reason="no pod of this node: it is for the node that has it to say",
            )
        answer = admin_pb2.EndVerdict(
            direction=direction.value,
            pod=decision.subject.pod,
            allowed=decision.reason.allows,
            reason=decision.reason.value,
            isolating=decision.isolating,
            allowing=[
                admin_pb2.AllowingRule(policy=name, rule=words)
                for name in decision.allowing
                for words in self._accepting(name, direction, flow)
            ],
        )
        if decision.reason not in _WITHOUT_KERNEL:
            differences = await self._differences(flow, decision)
            answer.kernel = "differs" if differences else "agrees"
            answer.differences.extend(differences)
        return answer

    def _accepting(self, policy: str, direction: Direction, flow: Flow) -> Iterator[str]:
        model = self._source.model
        for rule in model.rules[policy, direction].of(flow.source):
            if accepts(model, rule, direction, flow):
                yield rule_words(model, rule, direction)

    async def _differences(self, flow: Flow, decision: Decision) -> tuple[str, ...]:
        found: tuple[str, ...] = ()
        for _ in range(2):
            expected = self._source.tables.expected(
                self._source.model, decision.subject, decision.direction, flow
            )
            found = await self._source.inspect(expected)
            if not found:
                break
            await asyncio.sleep(_SECOND_LOOK)
        return found
