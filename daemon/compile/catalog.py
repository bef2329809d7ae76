"""The compiled state of all Services: what each wants in the kernel by now, and what a change concerns.

No I/O and no time: given all Services, their slices, the names of those that changed and this node, it gives
the fragments that are different from before, in slices if asked. Compiling everything anew gives the same
result, and the cost of a change does not depend on how many Services there are.

Where several Services want one frontend, whose ClusterIP it is gets it, else the oldest; when that one goes
the next takes over. Nobody can take connections to a ClusterIP away with an external address.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from daemon.compile.endpoints import Site
from daemon.compile.local import Problem
from daemon.compile.services import Kind, compile_service
from datapath import text
from datapath.desired import Fragment
from datapath.fragments import Claims
from datapath.nft.frontends import Need, need, service_elements
from datapath.nft.rules import Family, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from daemon.cluster.model import EndpointSlice, Service
    from daemon.compile.services import Compiled, HealthCheck
    from datapath.desired import FragmentKey
    from datapath.nft.frontends import Backend, Balance, Frontend

FRONTENDS_TOLD = 3
"""So many frontends of a Service are named in one problem."""

_NOBODY: frozenset[Backend] = frozenset()


def service_key(service: Service) -> FragmentKey:
    """Return the key of a Service's fragment: where two claim one element, the older one's wins."""
    return ("service", service.created, service.key)


@dataclass(frozen=True, slots=True)
class Row:
    """One frontend of a Service as people see it; `holder` is the other Service that has got it, or ""."""

    frontend: Frontend
    kind: Kind
    balance: Balance
    holder: str


@dataclass(frozen=True, slots=True)
class View:
    """One Service as people see it; `local` are those of its endpoints that are on this node."""

    service: Service
    rows: tuple[Row, ...]
    local: frozenset[Backend]
    health_check: HealthCheck | None


class _Record(NamedTuple):
    """What is remembered of a compiled Service: its fragment, and what has to be taken back with it."""

    key: FragmentKey
    fragment: Fragment
    claims: Mapping[Frontend, FragmentKey]
    need: Need


class Catalog:
    """All Services as they were compiled last.

    Attributes:
        flows: who may answer, by each UDP frontend that is served.
        health_checks: what load balancers ask, by Service.
    """

    def __init__(self) -> None:
        self.flows: dict[Frontend, frozenset[Backend]] = {}
        self.health_checks: dict[str, HealthCheck] = {}
        self._services: Mapping[str, Service] = {}
        self._slices: Callable[[str], Sequence[EndpointSlice]] = _no_slices
        self._site = Site("")
        self._records: dict[str, _Record] = {}
        self._claims: Claims[Frontend, str] = Claims()
        self._faults: dict[str, tuple[str, ...]] = {}
        self._by_zone: set[str] = set()
        self._by_address: set[str] = set()
        self._sizes: Counter[int] = Counter()
        self._timeouts: Counter[int] = Counter()
        self._stale: dict[Frontend, frozenset[Backend]] = {}
        # A dict, for its popitem takes as long however full it was once; a set looks through empty places.
        self._todo: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    @property
    def pending(self) -> bool:
        """Whether there is something left to compile."""
        return bool(self._todo)

    @property
    def need(self) -> Need:
        """Which chains the compiled fragments need; those that wait to be compiled may need more."""
        return Need(frozenset(self._sizes), frozenset(self._timeouts))

    def update(
        self,
        services: Mapping[str, Service],
        slices: Callable[[str], Sequence[EndpointSlice]],
        changed: Iterable[str],
        site: Site,
    ) -> dict[FragmentKey, Fragment | None]:
        """Do `take` and all of `compile` at once."""
        self.take(services, slices, changed, site)
        return self.compile()

    def take(
        self,
        services: Mapping[str, Service],
        slices: Callable[[str], Sequence[EndpointSlice]],
        changed: Iterable[str],
        site: Site,
    ) -> None:
        """Take in changes.

        Args:
            services: all Services by NAMESPACE/NAME; read when they are compiled.
            slices: the EndpointSlices of one, in the order of their names; asked when it is compiled.
            changed: Services that may have changed, come or gone, themselves or their slices.
            site: this node.
        """
        before, self._site = self._site, site
        self._services, self._slices = services, slices
        self._todo |= dict.fromkeys(changed)
        if site.node != before.node:
            self._todo |= dict.fromkeys(self._records)
        if site.zone != before.zone:
            self._todo |= dict.fromkeys(self._by_zone)
        if site.addresses != before.addresses:
            self._todo |= dict.fromkeys(self._by_address)

    def compile(self, limit: int | None = None) -> dict[FragmentKey, Fragment | None]:
        """Compile about `limit` Services; returns fragments that are different, None for one that is to go.

        Without a limit everything that is pending gets compiled, also Services that turn out to be concerned
        because another gave a frontend up or took it over.
        """
        changes: dict[FragmentKey, Fragment | None] = {}
        count = 0
        while self._todo and (limit is None or count < limit):
            self._compile(self._todo.popitem()[0], changes)
            count += 1
        return changes

    def holder(self, frontend: Frontend) -> str:
        """Return the Service that has got a frontend, as NAMESPACE/NAME; "" when none has."""
        return self._claims.values.get(frontend, "")

    def stale_flows(self) -> dict[Frontend, frozenset[Backend]]:
        """Take the UDP frontends that lost somebody who answered, or just came: with who may answer now.

        Flows to them that anybody else answers lead nowhere. At a frontend that just came those are the ones
        that were not translated. Each is returned once; all of them the first time.
        """
        stale, self._stale = self._stale, {}
        return stale

    def view(self, name: str) -> View | None:
        """Return one Service for people; None where there is none, or nothing to connect to."""
        service = self._services.get(name)
        if service is None or name not in self._records:
            return None
        compiled = compile_service(service, self._slices(name), self._site)
        rows = []
        for frontend, balance in compiled.balances.items():
            holder = self._claims.values.get(frontend, name)
            rows.append(Row(frontend, compiled.kinds[frontend], balance, "" if holder == name else holder))
        return View(service, tuple(rows), frozenset(compiled.local), compiled.health_check)

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong with Services now."""
        for name, faults in self._faults.items():
            yield Problem(
                "ServiceIncomplete",
                "warning",
                f"Service {name} is served without what can't be understood of it: {'; '.join(faults)}; "
                "correct the object",
                name,
            )
        lost: dict[tuple[str, str], list[Frontend]] = {}
        for frontend, owners in self._claims.contested():
            winner, *losers = (owner[-1] for owner in owners)
            for each in losers:
                lost.setdefault((each, winner), []).append(frontend)
        for (loser, winner), frontends in lost.items():
            yield _conflict(loser, winner, sorted(map(shown, frontends)))

    def _compile(self, name: str, changes: dict[FragmentKey, Fragment | None]) -> None:
        old = self._records.get(name)
        service = self._services.get(name)
        if service is None or not service.cluster_ips:
            if old is not None:
                self._forget(name, old, changes)
            return
        slices = self._slices(name)
        compiled = compile_service(service, slices, self._site)
        claims = _claims(service, compiled)
        if old is None or old.claims != claims:
            self._claim(name, old.claims if old is not None else {}, claims)
        holders = self._claims.values
        held = {each: found for each, found in compiled.balances.items() if holders[each] == name}
        elements = service_elements(held, cluster_ips=service.cluster_ips)
        new = _Record(
            key=service_key(service),
            fragment=Fragment(elements=elements),
            claims=claims,
            need=need(held.values()),
        )
        if old is None or old.key != new.key or old.fragment != new.fragment:
            if old is not None and old.key != new.key:
                changes[old.key] = None
            changes[new.key] = new.fragment
        elif old is not None:
            new = new._replace(fragment=old.fragment)
        self._records[name] = new
        self._count(old, new)
        self._note_flows({each: who for each, who in compiled.serving.items() if each in held})
        self._note(name, service, slices, compiled)

    def _forget(self, name: str, old: _Record, changes: dict[FragmentKey, Fragment | None]) -> None:
        changes[old.key] = None
        del self._records[name]
        self._claim(name, old.claims, {})
        self._count(old, None)
        self._faults.pop(name, None)
        self.health_checks.pop(name, None)
        self._by_zone.discard(name)
        self._by_address.discard(name)

    def _claim(
        self, name: str, old: Mapping[Frontend, FragmentKey], new: Mapping[Frontend, FragmentKey]
    ) -> None:
        """Change what a Service claims; whoever gets or loses a frontend by that is compiled again."""
        values = self._claims.values
        for frontend, owner in old.items():
            if new.get(frontend) != owner:
                self._claims.drop(owner, frontend)
                if (heir := values.get(frontend)) is not None:
                    self._todo[heir] = None
                elif self.flows.pop(frontend, None) is not None:
                    self._stale[frontend] = _NOBODY
        for frontend, owner in new.items():
            if old.get(frontend) != owner:
                holder = values.get(frontend)
                self._claims.put(owner, frontend, name)
                if holder is not None and holder != name:
                    self._todo[holder] = None

    def _count(self, old: _Record | None, new: _Record | None) -> None:
        """Keep the numbers of Services that need each chain."""
        before, after = (each.need if each is not None else Need() for each in (old, new))
        if before == after:
            return
        for counter, gone, come in (
            (self._sizes, before.sizes, after.sizes),
            (self._timeouts, before.timeouts, after.timeouts),
        ):
            counter.update(come)
            for each in gone:
                counter[each] -= 1
                if not counter[each]:
                    del counter[each]

    def _note_flows(self, flows: Mapping[Frontend, frozenset[Backend]]) -> None:
        """Keep who may answer at UDP frontends, and where somebody may answer no more."""
        for frontend, serving in flows.items():
            known = self.flows.get(frontend)
            if known == serving:
                continue
            if not known or known - serving or frontend in self._stale:
                self._stale[frontend] = serving
            self.flows[frontend] = serving

    def _note(self, name: str, service: Service, slices: Sequence[EndpointSlice], compiled: Compiled) -> None:
        faults = service.faults
        for each in slices:
            faults += each.faults
        if faults:
            self._faults[name] = faults
        else:
            self._faults.pop(name, None)
        if compiled.health_check is not None:
            self.health_checks[name] = compiled.health_check
        else:
            self.health_checks.pop(name, None)
        (self._by_zone.add if compiled.by_zone else self._by_zone.discard)(name)
        (self._by_address.add if compiled.by_address else self._by_address.discard)(name)


def shown(frontend: Frontend) -> str:
    """Return a frontend as people write it: `TCP 203.0.113.1:80`, `UDP node port 30053 (IPv4)`."""
    protocol = Protocol(frontend.protocol).name
    if frontend.address is None:
        version = "IPv6" if frontend.family == Family.IPV6 else "IPv4"
        return f"{protocol} node port {frontend.port} ({version})"
    address = text.address(frontend.address)
    return f"{protocol} {f'[{address}]' if ':' in address else address}:{frontend.port}"


def _claims(service: Service, compiled: Compiled) -> dict[Frontend, FragmentKey]:
    """Return by which right a Service claims each of its frontends; the smallest one prevails."""
    name = service.key
    first, others = ("0", service.created, name), ("1", service.created, name)
    return {
        frontend: first if kind is Kind.CLUSTER_IP else others for frontend, kind in compiled.kinds.items()
    }


def _conflict(loser: str, winner: str, frontends: Sequence[str]) -> Problem:
    named = ", ".join(frontends[:FRONTENDS_TOLD])
    if len(frontends) > FRONTENDS_TOLD:
        named += f" and {len(frontends) - FRONTENDS_TOLD} more"
    return Problem(
        "ServiceConflict",
        "warning",
        f"Service {loser} does not get connections to {named}: they go to Service {winner}, whose ClusterIP "
        "it is or which is older; take address or port away from one of the two",
        f"{loser} {winner}",
    )


def _no_slices(_service: str) -> Sequence[EndpointSlice]:
    return ()
