"""What the commands of `weft-lab` show: tables of objects, of the lab, of the connectivity matrix."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lab.api.resources import Object

_FAULTS_SHOWN = 20


def _ready(node: Object) -> str:
    conditions = {entry["type"]: entry["status"] for entry in node.get("status", {}).get("conditions", [])}
    return "Ready" if conditions.get("Ready") == "True" else "NotReady"


def _internal_ips(node: Object) -> str:
    addresses = node.get("status", {}).get("addresses", [])
    return ", ".join(entry["address"] for entry in addresses if entry["type"] == "InternalIP")


def _phase(pod: Object) -> str:
    if "deletionTimestamp" in pod["metadata"]:
        return "Terminating"
    return str(pod.get("status", {}).get("phase", "Pending"))


def _external_ips(service: Object) -> list[str]:
    ingress = service.get("status", {}).get("loadBalancer", {}).get("ingress", [])
    return [*service["spec"].get("externalIPs", []), *(entry.get("ip", "") for entry in ingress)]


def _port(port: Object) -> str:
    node_port = f":{port['nodePort']}" if port.get("nodePort") else ""
    return f"{port.get('port', '')}{node_port}/{port.get('protocol', 'TCP')}"


def _endpoint(endpoint: Object) -> str:
    """An address and what is remarkable about it."""
    conditions = endpoint.get("conditions") or {}
    remarks = [word for word in ("terminating",) if conditions.get(word)]
    remarks += ["not ready"] if conditions.get("ready") is False and not remarks else []
    return " ".join([*endpoint.get("addresses", []), *(f"({word})" for word in remarks)])


_COLUMNS: dict[str, dict[str, Callable[[Object], str]]] = {
    "Node": {
        "STATUS": _ready,
        "INTERNAL-IP": _internal_ips,
        "POD-CIDRS": lambda node: ", ".join(node.get("spec", {}).get("podCIDRs", [])),
    },
    "Pod": {
        "STATUS": _phase,
        "IP": lambda pod: ", ".join(entry["ip"] for entry in pod.get("status", {}).get("podIPs", [])),
        "NODE": lambda pod: str(pod["spec"].get("nodeName", "")),
    },
    "Service": {
        "TYPE": lambda service: str(service["spec"].get("type", "")),
        "CLUSTER-IP": lambda service: "\n".join(service["spec"].get("clusterIPs", [])),
        "EXTERNAL-IP": lambda service: "\n".join(_external_ips(service)),
        "PORTS": lambda service: ", ".join(map(_port, service["spec"].get("ports", []))),
    },
    "EndpointSlice": {
        "FAMILY": lambda item: str(item.get("addressType", "")),
        "PORTS": lambda item: ", ".join(_port(port) for port in item.get("ports") or []),
        "ENDPOINTS": lambda item: "\n".join(map(_endpoint, item.get("endpoints") or [])),
    },
    "Event": {
        "TYPE": lambda event: str(event.get("type", "")),
        "REASON": lambda event: str(event.get("reason", "")),
        "OBJECT": lambda event: str(
            (event.get("involvedObject") or event.get("regarding") or {}).get("name", "")
        ),
        "MESSAGE": lambda event: str(event.get("message") or event.get("note") or ""),
    },
}


def _plain(title: str = "") -> Table:
    return Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")


def objects(items: list[Object], kind: str, *, namespaces: bool) -> Table:
    """A list of objects of one kind."""
    columns = _COLUMNS.get(kind, {"CREATED": lambda item: str(item["metadata"].get("creationTimestamp", ""))})
    table = _plain()
    for heading in (*(["NAMESPACE"] if namespaces else []), "NAME", *columns):
        table.add_column(heading, overflow="fold")
    for item in items:
        first = [item["metadata"].get("namespace", "")] if namespaces else []
        table.add_row(*first, item["metadata"]["name"], *(read(item) for read in columns.values()))
    return table


def lab(shown: dict[str, Any]) -> Table:
    """The nodes of the lab and their daemons."""
    table = _plain()
    for heading in ("NODE", "SEGMENT", "ADDRESSES", "POD CIDRS", "WEFTD", "STARTS", "PODS"):
        table.add_column(heading, overflow="fold")
    for node in shown["nodes"]:
        pid = node["daemon"]["pid"]
        table.add_row(
            node["name"],
            str(node["segment"]),
            "\n".join(node["addresses"]),
            "\n".join(node["podCIDRs"]),
            f"pid {pid}" if pid else "[red]not running",
            str(node["daemon"]["starts"]),
            str(node["pods"]),
        )
    return table


def matrix(outcomes: list[dict[str, Any]]) -> Table:
    """Who reaches whom: a row per source, a column per destination, all protocols and families together."""
    cells: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for row in outcomes:
        cells[row["source"], row["destination"]].append(not row["fault"])
    sources = list(dict.fromkeys(sorted((source for source, _ in cells), key=_natural)))
    destinations = list(dict.fromkeys(sorted((destination for _, destination in cells), key=_natural)))
    table = Table(
        title="who reaches whom", title_justify="left", pad_edge=False, header_style="bold", box=None
    )
    table.add_column("from \\ to")
    for destination in destinations:
        table.add_column(destination.removeprefix("pod-"), justify="center")
    for source in sources:
        table.add_row(source, *(_cell(cells.get((source, destination))) for destination in destinations))
    return table


def _natural(name: str) -> tuple[int, str]:
    return (0 if name.startswith("pod") else 1 if name != "outside" else 2, name)


def _cell(results: list[bool] | None) -> str:
    if not results:
        return "[dim]·"
    if all(results):
        return "[green]✓"
    return f"[bold red]✗ {results.count(True)}/{len(results)}"


def roads(outcomes: list[dict[str, Any]]) -> Table:
    """Each kind of road, by family and protocol: how many probes were right."""
    kinds = ((4, "tcp"), (4, "udp"), (6, "tcp"), (6, "udp"))
    counted: dict[str, dict[tuple[int, str], list[bool]]] = defaultdict(lambda: defaultdict(list))
    for row in outcomes:
        counted[row["road"]][row["family"], row["protocol"]].append(not row["fault"])
    table = _plain("roads, with the source address that the receiver saw")
    table.add_column("road")
    for family, protocol in kinds:
        table.add_column(f"IPv{family} {protocol.upper()}", justify="right")
    for road in sorted(counted):
        table.add_row(road, *(_count(counted[road].get(kind, [])) for kind in kinds))
    return table


def _count(results: list[bool]) -> str:
    if not results:
        return "[dim]·"
    colour = "green" if all(results) else "bold red"
    return f"[{colour}]{results.count(True)}/{len(results)}"


def faults(outcomes: Iterable[dict[str, Any]]) -> list[str]:
    """The faults in words, the first ones if there are many."""
    bad = [row for row in outcomes if row["fault"]]
    lines = [
        f"{row['road']}: {row['source']} → {row['destination']} "
        f"IPv{row['family']} {row['protocol'].upper()}: {row['fault']}"
        for row in bad[:_FAULTS_SHOWN]
    ]
    if len(bad) > _FAULTS_SHOWN:
        lines.append(f"... and {len(bad) - _FAULTS_SHOWN} more")
    return lines
