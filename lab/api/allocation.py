"""Who holds which ClusterIP and which node port. Knows nothing of the shape of a Service."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import TYPE_CHECKING

from lab.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterable

IpAddress = IPv4Address | IPv6Address
IpNetwork = IPv4Network | IPv6Network

NODE_PORTS = range(30000, 32768)
"""The API server's --service-node-port-range, by default."""


class Addresses:
    """ClusterIPs in use. Free ones are given out in turn, so that one just given back is not the next."""

    def __init__(self) -> None:
        self._holders: dict[IpAddress, str] = {}
        self._last: dict[IpNetwork, int] = {}

    def request(self, holder: str, text: str, networks: Iterable[IpNetwork]) -> str:
        """Take a certain address; ApiError 422 when it is another's or in none of the networks."""
        try:
            address = ip_address(text)
        except ValueError as error:
            raise ApiError.unprocessable(f"spec.clusterIPs: {text!r} is no IP address") from error
        if not any(address in network for network in networks):
            raise ApiError.unprocessable(f"spec.clusterIPs: {text} is in no service CIDR of the cluster")
        if (owner := self._holders.setdefault(address, holder)) != holder:
            raise ApiError.unprocessable(f"spec.clusterIPs: {text} is allocated already, to {owner}")
        return str(address)

    def choose(self, holder: str, networks: Iterable[IpNetwork]) -> str:
        """Take a free address of the first network that has one; ApiError 500 when all are in use."""
        for network in networks:
            # The first address is the network itself; the last of an IPv4 network its broadcast address.
            size = min(network.num_addresses, 1 << 20) - (2 if network.version == 4 else 1)
            begin = self._last.get(network, 0)
            for step in range(size):
                number = (begin + step) % size + 1
                if (address := network[number]) not in self._holders:
                    self._last[network] = number
                    self._holders[address] = holder
                    return str(address)
        raise ApiError(500, "InternalError", "failed to allocate a serviceIP: the range is full")

    def release(self, text: str) -> None:
        """Give an address back."""
        self._holders.pop(ip_address(text), None)


class NodePorts:
    """Node ports in use. A number may be held once for each protocol by one holder, never by two."""

    def __init__(self, numbers: range = NODE_PORTS) -> None:
        self.numbers = numbers
        self._holders: dict[int, tuple[str, set[str]]] = {}
        self._last = numbers.start - 1

    def request(self, holder: str, protocol: str, number: int) -> None:
        """Take a certain port; ApiError 422 when it is in use or out of range."""
        if number not in self.numbers:
            valid = f"{self.numbers.start}-{self.numbers.stop - 1}"
            raise ApiError.unprocessable(f"nodePort {number}: valid ports are {valid}")
        owner, protocols = self._holders.setdefault(number, (holder, set()))
        if owner != holder or protocol in protocols:
            raise ApiError.unprocessable(f"nodePort {number}/{protocol} is allocated already, to {owner}")
        protocols.add(protocol)

    def choose(self, holder: str, protocol: str) -> int:
        """Take a port that nobody holds; ApiError 500 when there is none."""
        size = len(self.numbers)
        for step in range(1, size + 1):
            number = self.numbers[(self._last - self.numbers.start + step) % size]
            if number not in self._holders:
                self._holders[number] = (holder, {protocol})
                self._last = number
                return number
        raise ApiError(500, "InternalError", "failed to allocate a nodePort: the range is full")

    def release(self, protocol: str, number: int) -> None:
        """Give a port back."""
        if number in self._holders:
            protocols = self._holders[number][1]
            protocols.discard(protocol)
            if not protocols:
                del self._holders[number]
