"""Where a frontend of a Service is, read from the Service as the API has it."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lab.api.resources import Object
    from tests.scenarios.model import Probe


class MissingError(Exception):
    """The Service has no such frontend."""


def locate(service: Object, probe: Probe, node_address: str) -> tuple[str, int]:
    """The address and port that a probe asks.

    Args:
        service: the Service; for the kind "address" it does not matter.
        probe: with the target.
        node_address: that of the node whose node ports are asked, in the probe's family.

    Raises:
        MissingError: there is none.
    """
    target, family = probe.target, probe.family
    if target.kind == "address":
        return target.addresses[family == 6], target.port
    spec = service["spec"]
    match target.kind:
        case "cluster":
            texts = spec.get("clusterIPs", [])
        case "external":
            texts = spec.get("externalIPs", [])
        case "balancer":
            ingress = service.get("status", {}).get("loadBalancer", {}).get("ingress", [])
            texts = [entry["ip"] for entry in ingress]
        case _:
            wanted = (probe.protocol.upper(), target.port)
            numbers = {(port["protocol"], port["port"]): port.get("nodePort", 0) for port in spec["ports"]}
            return node_address, numbers.get(wanted) or target.port
    found = [text for text in texts if ip_address(text).version == family]
    if not found:
        raise MissingError(f"the Service has no {target.kind} address of IPv{family}")
    return found[0], target.port
