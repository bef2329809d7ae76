"""Carries out the table of scenarios without a kernel: objects → decode → compile → rules → packet tracer.

The lab's API storage and controllers make the objects, the daemon's own code compiles them for each node, and
a packet is traced from host to host until somebody answers it, or nobody.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from daemon.cluster import decode, decode_pods, decode_policies, decode_services
from daemon.cluster.store import NAMESPACE, NETWORK_POLICY, NODE, POD, SERVICE, Store
from daemon.compile.catalog import Catalog
from daemon.compile.endpoints import Site
from daemon.compile.network import Network
from daemon.compile.policy import Policies
from daemon.compile.policy_subjects import Attached
from daemon.compile.policy_tables import PolicyTables
from daemon.compile.service_routes import service_cidrs, service_routes
from daemon.compile.tables import TABLES, table_options, tables_fragment
from daemon.config import Config
from datapath.desired import Fragment
from datapath.desired import Route as DesiredRoute
from datapath.fragments import Fragments
from datapath.nft.evaluation import Packet
from datapath.nft.rules import Family, Ruleset
from datapath.nft.tables import pod_sources
from datapath.trace import Fate as PathFate
from datapath.trace import Host, Route, trace
from datapath.underlay import HostLink
from lab.api.selectors import matcher
from lab.api.storage import Storage
from lab.endpoint_slices import ZONE
from lab.errors import ApiError
from lab.service_controllers import EndpointSliceController, LoadBalancerController
from lab.underlay import EXTERNAL_NETWORKS, LOAD_BALANCER_NETWORKS, OUTSIDE, OUTSIDE_NETWORKS, Segment
from tests.scenarios.frontends import MissingError, locate
from tests.scenarios.manifests import placed
from tests.scenarios.model import Outcome, Source, Spread, made_by
from tests.scenarios.topology import (
    NODES,
    OLD,
    OTHER_PORT,
    PLACES,
    PORT,
    SPACE,
    UNREADY,
    ZONES,
    client,
    namespaces,
    pods,
    space_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pytest

    from daemon.cluster.model import Pod
    from daemon.cluster.store import Key
    from datapath.nft.evaluation import Memory
    from lab.api.resources import Object
    from tests.scenarios.model import Answer, Client, Probe, Scenario, Step

UNDERLAY_LINK = "eth0"
_NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132}
_SEGMENT = Segment(1)
_HOPS = 8


def _packed(text: str) -> bytes:
    return ip_address(text).packed


class End(NamedTuple):
    """How a packet ended: an outcome, who answered it, and the source that it saw."""

    outcome: Outcome
    server: str = ""
    source: bytes = b""


_LOST = End(Outcome.DROPPED, "nobody: it left for where it has no business, or had no route")
"""Not what DROPPED means in the table: there a rule drops the packet on a node."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way of a packet through all hosts, its probability, and what the first of them remembers of it."""

    end: End
    chance: Fraction
    memory: Memory


class _Pod(NamedTuple):
    name: str
    node: int
    link: str
    addresses: dict[int, bytes]


class _Node:
    """One node: the daemon's compiled state for it, and its place in the network."""

    def __init__(self, number: int, config: Config, local_pods: list[_Pod]) -> None:
        self.number = number
        self.name = f"node-{number}"
        self.memory: Memory = {}
        self.addresses = {family: _SEGMENT.node(family, number - 1).packed for family in (4, 6)}
        self._config = config
        self.pods = local_pods
        self._fragments = Fragments()
        self._catalog = Catalog()
        self._network = Network(self.name, config)
        self._policies = Policies(self.name)
        self._policy_tables = PolicyTables()
        self._own_pods: set[str] = set()
        self.ruleset: Ruleset
        self.host: Host

    def join(self, store: Store) -> None:
        """Compile the network."""
        links = HostLink(
            UNDERLAY_LINK,
            1500,
            tuple(
                (address, _SEGMENT.network(family).prefixlen) for family, address in self.addresses.items()
            ),
        )
        for key, fragment in self._network.update(store.nodes, store.nodes, [links]).items():
            self._fragments.replace(key, fragment)
        assert self._network.local is not None
        cidrs = service_cidrs(self._config, store.service_cidrs.values())
        self._fragments.replace(("service-cidrs",), service_routes(self._network.local, cidrs))
        sources = [each for pod in self.pods for each in pod_sources(pod.link, pod.addresses.values())]
        for number, each in enumerate(sources):
            self._fragments.replace(("pod", str(number)), Fragment(elements=(each,)))
        self.host = self._host()

    def _host(self) -> Host:
        assert self._network.local is not None
        tunnels = self._network.local.tunnel_addresses.values()
        known = [Route(network, length, UNDERLAY_LINK) for network, length in _known_networks()]
        desired = [
            Route(value.destination, value.length, value.link)
            for value in self._fragments.objects.values()
            if isinstance(value, DesiredRoute) and value.link is not None
        ]
        attached = [
            Route(address, len(address) * 8, pod.link)
            for pod in self.pods
            for address in pod.addresses.values()
        ]
        overlay = next(iter(self._network.local.vteps.values())).link
        masquerade = {(UNDERLAY_LINK, len(address)): address for address in self.addresses.values()}
        masquerade |= {(overlay, len(address)): address for address in tunnels}
        addresses = frozenset((*self.addresses.values(), *tunnels))
        return Host(addresses, (*attached, *desired, *known), masquerade)

    def follow(self, store: Store, changed: Iterable[Key]) -> None:
        """Compile what changed of policies and all that they depend on."""
        model = self._policies
        for kind, name in changed:
            if kind == NODE:
                model.put_node(name, store.nodes.get(name))
            elif kind == NAMESPACE:
                model.put_namespace(name, store.namespaces.get(name))
            elif kind == NETWORK_POLICY:
                model.put_policy(name, store.network_policies.get(name))
            else:
                self._follow_pod(name, store.pods.get(name))
        model.compile()
        for found in (self._policy_tables.take(model, model.changes()), self._policy_tables.sweep()):
            for key, fragment in found.items():
                self._fragments.replace(key, fragment)

    def _follow_pod(self, name: str, pod: Pod | None) -> None:
        """What runs here is attached; of other nodes' pods those that have ended are not told."""
        if pod is not None and pod.node == self.name:
            self._own_pods.add(name)
        if name not in self._own_pods:
            self._policies.put_remote_pod(name, None if pod is None or pod.finished else pod)
            return
        self._policies.put_pod(name, pod)
        for each in self.pods:
            if pod is not None and each.name == pod.name:
                addresses = tuple(each.addresses.values())
                attached = Attached(each.link, pod.namespace, pod.name, pod.uid, addresses)
                self._policies.put_attached(each.link, attached)

    def compile(self, store: Store, changed: Iterable[str]) -> None:
        """Compile what changed of Services."""
        site = Site(self.name, store.nodes[self.name].zone, store.nodes[self.name].internal_ips)
        services = store.services
        for key, fragment in self._catalog.update(services, store.endpoint_slices.of, changed, site).items():
            self._fragments.replace(key, fragment)
        self._fragments.replace(TABLES, tables_fragment(table_options(self._config, self._catalog.need)))
        self.ruleset = Ruleset(tuple(self._fragments.tables.values()), self._fragments.sets())


def _known_networks() -> Iterator[tuple[bytes, int]]:
    for family in (4, 6):
        worlds = (OUTSIDE_NETWORKS, LOAD_BALANCER_NETWORKS, EXTERNAL_NETWORKS)
        for network in (_SEGMENT.network(family), *(world[family] for world in worlds)):
            yield network.network_address.packed, network.prefixlen


class TracedCluster:
    """The cluster of tests/scenarios/topology.py, as values."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._clock = datetime(2026, 1, 1, tzinfo=UTC)
        monkeypatch.setattr("lab.api.storage.now", self._now)
        self._storage = Storage()
        self._controllers = (EndpointSliceController(self._storage), LoadBalancerController(self._storage))
        self._store = Store()
        self._changes = self._store.subscribe(SERVICE)
        self._policy_changes = self._store.subscribe(NODE, NAMESPACE, NETWORK_POLICY, POD)
        self._pods = {
            name: _Pod(
                name,
                node,
                f"weft{number:011x}",
                {4: _packed(f"10.244.{node - 1}.{number}"), 6: _packed(f"fd10:244:0:{node - 1}::{number:x}")},
            )
            for number, (name, node) in enumerate(PLACES.items(), 10)
        }
        config = Config()
        self._nodes = {
            number: _Node(number, config, [pod for pod in self._pods.values() if pod.node == number])
            for number in NODES
        }
        self._owners = {
            address: node
            for node in self._nodes.values()
            for owned in (node.addresses, *(pod.addresses for pod in node.pods))
            for address in owned.values()
        }
        self._last: dict[tuple[Client, str, int], str] = {}
        self._furnish()

    def _now(self) -> str:
        """Each object is a second younger than the one before."""
        self._clock += timedelta(seconds=1)
        return self._clock.strftime("%Y-%m-%dT%H:%M:%SZ")

    def _furnish(self) -> None:
        named = self._storage.catalogue.named
        cidrs = {"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16", "fd96::/112"]}}
        self._storage.create(named("servicecidrs"), "", cidrs)
        for number, node in self._nodes.items():
            ips = [
                {"type": "InternalIP", "address": str(ip_address(address))}
                for address in node.addresses.values()
            ]
            item: Object = {
                "metadata": {"name": node.name, "labels": {ZONE: ZONES[number - 1]}},
                "spec": {"podCIDRs": [f"10.244.{number - 1}.0/24", f"fd10:244:0:{number - 1}::/64"]},
                "status": {"addresses": ips},
            }
            self._storage.create(named("nodes"), "", item)
        for namespace in namespaces():
            self._storage.create(named("namespaces"), "", namespace)
        for pod in pods():
            name = pod["metadata"]["name"]
            ready = {"type": "Ready", "status": str(name != UNREADY)}
            ips = [{"ip": str(ip_address(each))} for each in self._pods[name].addresses.values()]
            status = {"phase": "Running", "podIPs": ips, "conditions": [ready]}
            self._storage.create(named("pods"), space_of(name), {**pod, "status": status})
            if name in OLD:
                self._storage.delete(named("pods"), SPACE, name)
        self._store.nodes.replace(
            {item["metadata"]["name"]: decode.node(item) for item in self._storage.list(named("nodes"))}
        )
        self._store.service_cidrs.replace(
            {
                item["metadata"]["name"]: decode.service_cidr(item)
                for item in self._storage.list(named("servicecidrs"))
            }
        )
        for node in self._nodes.values():
            node.join(self._store)
        self._propagate()

    # objects

    def change(self, step: Step) -> None:
        """Make the step's changes, and all that follows from them."""
        for item in step.apply:
            self._put(item)
        for kind, name in step.delete:
            self._storage.delete(self._storage.catalogue.named(kind), SPACE, name, grace=0)
        self._propagate()

    def _put(self, item: Object) -> None:
        resource = self._storage.catalogue.of(item)
        name = item["metadata"]["name"]
        space = item["metadata"].get("namespace", "")
        wanted = placed(item, self._address)
        try:
            self._storage.get(resource, space, name)
        except ApiError:
            self._storage.create(resource, space, wanted)
        else:
            self._storage.update(resource, space, name, lambda _: wanted)

    def _address(self, name: str, family: int) -> str:
        """The address of a pod, of a node, or of the one outside."""
        if name == "outside":
            return str(OUTSIDE[family])
        kind, _, number = name.partition("-")
        owner = self._nodes[int(number)] if kind == "node" else self._pods[name]
        return str(ip_address(owner.addresses[family]))

    def clean(self, scenario: Scenario) -> None:
        """Delete what the scenario made and may have left."""
        for kind, name in made_by(scenario):
            resource = self._storage.catalogue.named(kind)
            if any(item["metadata"]["name"] == name for item in self._storage.list(resource, SPACE)):
                self._storage.delete(resource, SPACE, name, grace=0)
        self._propagate()
        self._last.clear()
        for node in self._nodes.values():
            node.memory = {}

    def _propagate(self) -> None:
        """What controllers, reflectors and the nodes' daemons make of it."""
        for controller in self._controllers:
            controller.catch_up()
        named = self._storage.catalogue.named
        services = self._storage.list(named("services"), "", matcher(decode_services.SELECTOR, ""))
        slices = self._storage.list(named("endpointslices"), "", matcher(decode_services.SLICE_SELECTOR, ""))
        self._store.services.replace({_name(item): decode_services.service(item) for item in services})
        self._store.endpoint_slices.replace(
            {_name(item): decode_services.endpoint_slice(item) for item in slices}
        )
        self._store.pods.replace(
            {_name(item): decode_pods.pod(item) for item in self._storage.list(named("pods"))}
        )
        self._store.namespaces.replace(
            {
                item["metadata"]["name"]: decode_pods.namespace(item)
                for item in self._storage.list(named("namespaces"))
            }
        )
        policies = self._storage.list(named("networkpolicies"))
        self._store.network_policies.replace(
            {_name(item): decode_policies.network_policy(item) for item in policies}
        )
        changed = {key.name for key in self._changes.take()}
        of_policies = self._policy_changes.take()
        for node in self._nodes.values():
            node.follow(self._store, of_policies)
            node.compile(self._store, changed)

    # probes

    def faults(self, probes: Iterable[Probe]) -> dict[Probe, str]:
        """What does not come out as it must, in words."""
        return {probe: fault for probe in probes if (fault := self._fault(probe))}

    def _fault(self, probe: Probe) -> str:
        try:
            place = self._locate(probe)
        except MissingError as error:
            return str(error)
        first = self._nodes[probe.client.node]
        before: Memory = {} if probe.pause and probe.spread is Spread.ALL else first.memory
        ways = self._ways(probe, place, before)
        expected = {End(Outcome.ANSWERED, *self._seen(answer, probe)) for answer in probe.fate.answers}
        if not expected:
            expected = {End(probe.fate.outcome)}
        chances: dict[End, Fraction] = defaultdict(Fraction)
        for way in ways:
            chances[way.end] += way.chance
        wrong = [_shown(end) for end in chances if end not in expected]
        if wrong:
            return f"{', '.join(wrong)}, must be {' or '.join(map(_shown, expected))}"
        if probe.spread is Spread.ALL:
            if set(chances.values()) != {Fraction(1, len(expected))}:
                shares = {_shown(end): str(chance) for end, chance in chances.items()}
                return f"not spread evenly: {shares}"
            return ""
        return self._stuck(probe, place, ways)

    def _stuck(self, probe: Probe, place: tuple[bytes, int], ways: list[Way]) -> str:
        """Whether the client gets the same answer again, whichever it got first."""
        repeated = (probe.client, probe.protocol, probe.family)
        if probe.spread is Spread.KEPT and {way.end.server for way in ways} != {self._last[repeated]}:
            return f"not kept by {self._last[repeated]}: {[way.end.server for way in ways]}"
        for way in ways:
            again = {other.end for other in self._ways(probe, place, way.memory)}
            if again != {way.end}:
                return f"after {way.end.server} comes {[end.server for end in again]}"
        self._nodes[probe.client.node].memory = ways[-1].memory
        self._last[repeated] = ways[-1].end.server
        return ""

    def _ways(self, probe: Probe, place: tuple[bytes, int], memory: Memory) -> list[Way]:
        """All ways of one packet from the client."""
        asker, family = probe.client, probe.family
        node = self._nodes[asker.node]
        match asker.kind:
            case "outside":
                source, iif = OUTSIDE[family].packed, UNDERLAY_LINK
            case "node":
                # As the kernel does for a socket that is not bound.
                link = node.host.link_to(place[0])
                source = node.host.masquerade.get((link, len(place[0])), node.addresses[family])
                iif = ""
            case kind:
                pod = self._pods[client(asker.node) if kind == "pod" else kind]
                source, iif = pod.addresses[family], pod.link
        packet = Packet(
            Family.IPV4 if family == 4 else Family.IPV6,
            _NUMBERS[probe.protocol],
            source,
            place[0],
            place[1],
            iif,
        )
        return list(self._follow(packet, node, memory, _HOPS))

    def _follow(self, packet: Packet, node: _Node, memory: Memory, hops: int) -> Iterator[Way]:
        """Follow a packet that comes to a node, from node to node."""
        assert hops, f"{packet} goes in circles"
        for path in trace(node.ruleset, packet, node.host, memory):
            after = path.packet
            match path.fate:
                case PathFate.DROPPED:
                    yield Way(End(Outcome.DROPPED), path.chance, path.memory)
                case PathFate.UNROUTED:
                    yield Way(_LOST, path.chance, path.memory)
                case PathFate.REFUSED | PathFate.DELIVERED:
                    # The nodes' own servers are at another port: nobody listens at this one.
                    yield Way(End(Outcome.REFUSED), path.chance, path.memory)
                case PathFate.SENT if (other := self._owners.get(after.destination, node)) is not node:
                    clean = replace(
                        after, iif=after.oif, oif="", mark=0, priority=0, status=type(after.status)(0)
                    )
                    for way in self._follow(clean, other, {}, hops - 1):
                        yield Way(way.end, way.chance * path.chance, path.memory)
                case PathFate.SENT:
                    yield Way(self._arrive(after), path.chance, path.memory)

    def _arrive(self, packet: Packet) -> End:
        """What becomes of a packet that leaves a node for a pod, or for the world outside."""
        if packet.destination in {address.packed for address in OUTSIDE.values()}:
            answered = packet.destination_port == PORT
            return End(Outcome.ANSWERED, "outside", packet.source) if answered else End(Outcome.REFUSED)
        pod = next((each for each in self._pods.values() if each.link == packet.oif), None)
        if pod is None or packet.destination not in pod.addresses.values():
            return _LOST
        ports = (
            {PORT, PORT + int(pod.name.rpartition("-")[2])} if packet.protocol != 17 else {PORT, OTHER_PORT}
        )
        listening = packet.destination_port in ports
        return End(Outcome.ANSWERED, pod.name, packet.source) if listening else End(Outcome.REFUSED)

    def _seen(self, answer: Answer, probe: Probe) -> tuple[str, bytes]:
        """The server's name and the source address that it must see."""
        family, asker = probe.family, probe.client
        balancing = self._nodes[probe.target.node or asker.node]
        match answer.source:
            case Source.CLIENT if asker.kind == "outside":
                source = OUTSIDE[family].packed
            case Source.CLIENT if asker.kind != "node":
                source = self._pods[client(asker.node) if asker.kind == "pod" else asker.kind].addresses[
                    family
                ]
            case Source.CLIENT | Source.CLIENT_NODE:
                source = self._nodes[asker.node].addresses[family]
            case Source.NODE:
                source = balancing.addresses[family]
            case Source.TUNNEL:
                source = _tunnel(balancing.number, family)
        return answer.server, source

    def _locate(self, probe: Probe) -> tuple[bytes, int]:
        named = self._storage.catalogue.named("services")
        target = probe.target
        service = {} if target.kind == "address" else self._storage.get(named, SPACE, target.service)
        node = self._nodes[target.node or probe.client.node]
        address, port = locate(service, probe, str(ip_address(node.addresses[probe.family])))
        return _packed(placed(address, self._address)), port


def _tunnel(node: int, family: int) -> bytes:
    return _packed(f"10.244.{node - 1}.0" if family == 4 else f"fd10:244:0:{node - 1}::")


def _name(item: Object) -> str:
    return f"{item['metadata']['namespace']}/{item['metadata']['name']}"


def _shown(end: End) -> str:
    seeing = f" by {end.server}" + (f" seeing {ip_address(end.source)}" if end.source else "")
    seeing = seeing if end.server else ""
    return f"{end.outcome.value}{seeing}"
