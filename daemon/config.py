"""What an operator can configure: /etc/weft/weftd.yaml, every key with its default.

Owns parsing and its errors. The file is read once, at start, and strictly: an unknown key, a key given twice,
a value of the wrong type or out of range is an error that names key, value and what is allowed, and all such
errors are told at once.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import socket
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import urlsplit

import yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_PATH = "/etc/weft/weftd.yaml"


class ConfigError(Exception):
    """The configuration can't be used; the message has one line per fault, each with its remedy.

    Attributes:
        usable: the configuration with all faulty keys left out; enough to tell the cluster about the fault.
    """

    def __init__(self, message: str, usable: Config | None = None) -> None:
        self.usable = usable or Config()
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Config:
    """The daemon's configuration; each field is the YAML key in camelCase (see `KEYS`)."""

    node_name: str = ""
    """Name of this node's Node object; default: environment NODE_NAME, else the host name in lower case."""
    api_server: str = ""
    """URL of the API server; default: kubeconfig's server, kubelet's kubeconfig, in-cluster environment."""
    kubeconfig: str = ""
    """Path of a kubeconfig; default: in-cluster service account, then kubelet's kubeconfig."""
    cluster_cidrs: tuple[str, ...] = ()
    """Pod CIDRs of the cluster; default: the union of all Nodes' podCIDRs."""
    service_cidrs: tuple[str, ...] = ()
    """Service CIDRs, for the overlap check; default: ServiceCIDR objects where the API has them."""
    overlay: Literal["vxlan", "direct", "auto"] = "vxlan"
    vni: int = 4096
    vxlan_port: int = 4789
    mtu: int = 0
    """MTU of pods' interfaces; 0: that of the underlay less the overlay's overhead."""
    tx_checksum_offload: Literal["auto", "off"] = "auto"
    masquerade: bool = True
    non_masquerade_cidrs: tuple[str, ...] = ()
    node_port_addresses: tuple[str, ...] = ()
    """CIDRs of this node's addresses at which node ports are served; default: the Node's addresses."""
    masquerade_mark: int = 0x4000
    """The bit of packets' marks between prerouting and postrouting that asks for this node's address."""
    cooldown_seconds: int = 30
    """How long a released address rests before it is handed out again."""
    resync_seconds: int = 60
    """How often the kernel is compared with the desired state when nothing happens."""
    max_concurrent_adds: int = 64
    conntrack_max_per_core: int = 32768
    """Flows for each core that the kernel shall be able to track at least; 0 leaves the limit alone."""
    conntrack_min: int = 131072
    conntrack_established_seconds: int = 86400
    conntrack_close_wait_seconds: int = 3600
    policy_log_rate: int = 10
    """Denied packets that are logged each second at most; 0 logs none."""
    policy_log_group: int = 1193
    """nflog group by which they come."""
    metrics_address: str = ":9465"
    health_address: str = ":10256"
    probe_address: str = "127.0.0.1:9466"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    dns: dict[str, list[str]] = field(default_factory=dict)


Parse: TypeAlias = Callable[[object], object]
"""Turns a YAML value into a field's value; raises ValueError (its text is unused) if not allowed."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the file: its name, the field it sets, what is allowed and what it means."""

    name: str
    field: str
    allowed: str
    meaning: str
    parse: Parse

    @property
    def default(self) -> object:
        """The value of the field when the key is absent."""
        return getattr(Config(), self.field)


def _text(pattern: str) -> Parse:
    compiled = re.compile(pattern)

    def parse(value: object) -> str:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise ValueError
        return value

    return parse


def _choice(*allowed: str) -> Parse:
    def parse(value: object) -> str:
        # YAML 1.1 reads a bare `off` as false.
        text = "off" if value is False else value
        if not isinstance(text, str) or text not in allowed:
            raise ValueError
        return text

    return parse


def _integer(low: int, high: int, *also: int) -> Parse:
    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError  # noqa: TRY004 - one exception type says "not allowed"
        if not low <= value <= high and value not in also:
            raise ValueError
        return value

    return parse


def _one_bit(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError  # noqa: TRY004 - one exception type says "not allowed"
    if not 0 < value < 2**32 or value & (value - 1):
        raise ValueError
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError  # noqa: TRY004 - one exception type says "not allowed"
    return value


def _cidrs(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and "/" in item for item in value):
        raise ValueError
    prefixes = tuple(str(ipaddress.ip_network(item)) for item in value)
    if len(set(prefixes)) != len(prefixes):
        raise ValueError
    return prefixes


def _url(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError  # noqa: TRY004 - one exception type says "not allowed"
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
        raise ValueError
    _ = parts.port  # raises ValueError when it is no port
    return value.rstrip("/")


def _listen(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError  # noqa: TRY004 - one exception type says "not allowed"
    if value:
        split_listen(value)
    return value


def _dns(value: object) -> dict[str, list[str]]:
    allowed = {"nameservers", "search", "options", "domain"}
    if not isinstance(value, dict) or not set(value) <= allowed:
        raise ValueError
    result: dict[str, list[str]] = {}
    for key, entry in value.items():
        entries = [entry] if key == "domain" else entry
        if not isinstance(entries, list) or not all(isinstance(item, str) and item for item in entries):
            raise ValueError
        if key == "nameservers":
            entries = [str(ipaddress.ip_address(item)) for item in entries]
        result[key] = entries
    return result


def split_listen(address: str) -> tuple[str | None, int]:
    """Split "HOST:PORT", "[IPv6]:PORT" or ":PORT" into host (None: all addresses) and port.

    Raises:
        ValueError: the text is none of these.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError(f"{address!r} is not HOST:PORT")
    if host:
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if (":" in bare) != (bare != host):
            raise ValueError(f"{address!r}: an IPv6 address is written [address]:port")
        ipaddress.ip_address(bare)
        return bare, int(port)
    return None, int(port)


_CIDRS = "a list of CIDRs without host bits, each once"
_LISTEN = 'ADDRESS:PORT, [IPv6]:PORT or :PORT, "" to switch it off'

KEYS: tuple[Key, ...] = (
    Key(
        "nodeName",
        "node_name",
        "a Kubernetes node name (lower case letters, digits, '-' and '.')",
        "Name of this node's Node object. Default: environment NODE_NAME, else the host name in lower case.",
        _text(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?"),
    ),
    Key(
        "apiServer",
        "api_server",
        "a URL, http:// or https://",
        "The API server, by an address that works without Services. Default: the server of `kubeconfig`, of"
        " kubelet's kubeconfig, else the environment that Kubernetes sets in pods.",
        _url,
    ),
    Key(
        "kubeconfig",
        "kubeconfig",
        "an absolute path",
        "Credentials for the API server. Default: the pod's service account, else kubelet's kubeconfig.",
        _text(r"/.+"),
    ),
    Key(
        "clusterCIDRs",
        "cluster_cidrs",
        _CIDRS,
        "All pods' addresses, never masqueraded towards. Default: the union of all Nodes' podCIDRs.",
        _cidrs,
    ),
    Key(
        "serviceCIDRs",
        "service_cidrs",
        _CIDRS,
        "All ClusterIPs, to check for overlaps. Default: ServiceCIDR objects where the API has them.",
        _cidrs,
    ),
    Key(
        "overlay",
        "overlay",
        "vxlan, direct or auto",
        "How other nodes' pods are reached: by VXLAN; by routes over a shared segment; or by routes where a"
        " segment is shared and by VXLAN elsewhere.",
        _choice("vxlan", "direct", "auto"),
    ),
    Key(
        "vni",
        "vni",
        "1 to 16777215",
        "VXLAN network identifier; the same on all nodes.",
        _integer(1, 2**24 - 1),
    ),
    Key(
        "vxlanPort",
        "vxlan_port",
        "1 to 65535",
        "UDP port of the overlay; the same on all nodes.",
        _integer(1, 65535),
    ),
    Key(
        "mtu",
        "mtu",
        "576 to 65535, or 0 for automatic",
        "MTU of pods' interfaces. 0: that of the underlay, less 50 (IPv4) or 70 (IPv6) bytes with VXLAN.",
        _integer(576, 65535, 0),
    ),
    Key(
        "txChecksumOffload",
        "tx_checksum_offload",
        "auto or off",
        "off: checksums of encapsulated packets are computed in software, for cards that get them wrong.",
        _choice("auto", "off"),
    ),
    Key(
        "masquerade",
        "masquerade",
        "true or false",
        "Whether pods reach the outside of the cluster with their node's address.",
        _boolean,
    ),
    Key(
        "nonMasqueradeCIDRs",
        "non_masquerade_cidrs",
        _CIDRS,
        "Destinations outside the cluster that see pods' own addresses.",
        _cidrs,
    ),
    Key(
        "nodePortAddresses",
        "node_port_addresses",
        _CIDRS,
        "Node ports are served at this node's addresses within these, never at loopback. Default: the Node's"
        " own addresses.",
        _cidrs,
    ),
    Key(
        "masqueradeMark",
        "masquerade_mark",
        "one bit, 1 to 2147483648",
        "The bit of packets' marks that asks for the node's address as source; no other agent may use it.",
        _one_bit,
    ),
    Key(
        "cooldownSeconds",
        "cooldown_seconds",
        "0 to 86400",
        "How long a released address rests before it is handed out again.",
        _integer(0, 86400),
    ),
    Key(
        "resyncSeconds",
        "resync_seconds",
        "1 to 86400",
        "How often the kernel is compared with the desired state when nothing happens.",
        _integer(1, 86400),
    ),
    Key(
        "maxConcurrentAdds",
        "max_concurrent_adds",
        "1 to 4096",
        "How many requests of the runtime are taken in at a time; more wait at the socket.",
        _integer(1, 4096),
    ),
    Key(
        "conntrackMaxPerCore",
        "conntrack_max_per_core",
        "0 to 16777216",
        "How many flows the kernel shall be able to track for each core; its limit is raised to that, never"
        " lowered. 0 leaves it alone.",
        _integer(0, 1 << 24),
    ),
    Key(
        "conntrackMin",
        "conntrack_min",
        "0 to 1073741824",
        "How many flows the kernel shall be able to track however few cores there are.",
        _integer(0, 1 << 30),
    ),
    Key(
        "conntrackEstablishedSeconds",
        "conntrack_established_seconds",
        "0 to 2147483",
        "After how much silence an established TCP connection is forgotten. 0 leaves the setting alone.",
        _integer(0, 2147483),
    ),
    Key(
        "conntrackCloseWaitSeconds",
        "conntrack_close_wait_seconds",
        "0 to 2147483",
        "The same for a TCP connection that one side has closed. 0 leaves the setting alone.",
        _integer(0, 2147483),
    ),
    Key(
        "policyLogRate",
        "policy_log_rate",
        "0 to 1000",
        "How many packets that no NetworkPolicy allows are logged each second at most. 0 logs none; they are"
        " counted all the same.",
        _integer(0, 1000),
    ),
    Key(
        "policyLogGroup",
        "policy_log_group",
        "1 to 65535",
        "The nflog group by which these packets come; no other agent may use it.",
        _integer(1, 65535),
    ),
    Key("metricsAddress", "metrics_address", _LISTEN, "Where Prometheus metrics are served.", _listen),
    Key(
        "healthAddress",
        "health_address",
        _LISTEN,
        "Where load balancers ask for /healthz, as they ask kube-proxy.",
        _listen,
    ),
    Key(
        "probeAddress",
        "probe_address",
        _LISTEN,
        "Where kubelet asks for /livez and /readyz.",
        _listen,
    ),
    Key(
        "logLevel",
        "log_level",
        "debug, info, warning or error",
        "The least level that is logged.",
        _choice("debug", "info", "warning", "error"),
    ),
    Key(
        "logFormat",
        "log_format",
        "json or console",
        "One JSON object per line, or lines for people.",
        _choice("json", "console"),
    ),
    Key(
        "dns",
        "dns",
        "a mapping with nameservers, search, options (lists of text) and domain (text)",
        "The `dns` of every CNI result. Kubernetes ignores it: kubelet writes pods' resolv.conf itself.",
        _dns,
    ),
)


class _StrictLoader(yaml.SafeLoader):
    """Plain YAML in which no key may occur twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            if isinstance(key, Hashable):
                seen.add(key)
        return super().construct_mapping(node, deep)


def parse(text: str, path: str = DEFAULT_PATH) -> Config:
    """Read a configuration from YAML.

    Raises:
        ConfigError: with one line for each fault.
    """
    try:
        document: object = yaml.load(text, _StrictLoader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if document is None:
        return Config()
    if not isinstance(document, dict):
        raise ConfigError(f"{path} must hold a mapping of keys, not {_shown(document)}")
    keys = {key.name: key for key in KEYS}
    values: dict[str, Any] = {}
    faults: list[str] = []
    for name, value in document.items():
        key = keys.get(name) if isinstance(name, str) else None
        if key is None:
            faults.append(f"unknown key {_shown(name)}{_suggestion(name, keys)}")
            continue
        try:
            values[key.field] = key.parse(value)
        except ValueError:
            faults.append(f"{name}: {_shown(value)} is not allowed; allowed: {key.allowed}")
    if faults:
        raise ConfigError("\n".join(f"{path}: {fault}" for fault in faults), Config(**values))
    return Config(**values)


def load(path: str = DEFAULT_PATH, *, required: bool = False) -> Config:
    """Read the configuration file; an absent one means the defaults unless it is required.

    Raises:
        ConfigError: the file can't be read or used.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError as error:
        if required:
            raise ConfigError(f"{path} does not exist; create it or leave --config out") from error
        return Config()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    return parse(text, path)


def node_name(config: Config, environment: Mapping[str, str] = os.environ) -> str:
    """The name of this node's Node object."""
    return config.node_name or environment.get("NODE_NAME", "") or socket.gethostname().lower()


def _suggestion(name: object, keys: Mapping[str, Key]) -> str:
    lowered = {known.lower(): known for known in keys}
    close = difflib.get_close_matches(str(name).lower(), lowered, n=1, cutoff=0.7)
    return f"; did you mean {lowered[close[0]]}?" if close else f"; known keys: {', '.join(keys)}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
