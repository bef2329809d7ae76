"""The configuration file: defaults, every key, and errors that tell all faults at once."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from daemon import config
from daemon.config import KEYS, Config, ConfigError, parse


def test_an_empty_file_means_the_defaults() -> None:
    assert parse("") == parse("{}") == parse("# nothing\n") == Config()


def test_every_field_has_a_key_and_every_key_a_field() -> None:
    assert [key.field for key in KEYS] == [field.name for field in dataclasses.fields(Config)]


def test_names_are_the_fields_in_camel_case() -> None:
    for key in KEYS:
        assert key.name.lower() == key.field.replace("_", "")


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_a_default_other_than_empty_is_allowed_as_a_value(key: config.Key) -> None:
    if key.default:
        value = list(key.default) if isinstance(key.default, tuple) else key.default
        assert key.parse(value) == key.default


VALID: list[tuple[str, str, object]] = [
    ("nodeName: node-1.example", "node_name", "node-1.example"),
    ("apiServer: https://10.0.0.1:6443/", "api_server", "https://10.0.0.1:6443"),
    ("apiServer: 'https://[fd00::1]:6443'", "api_server", "https://[fd00::1]:6443"),
    ("kubeconfig: /etc/kubernetes/weft.conf", "kubeconfig", "/etc/kubernetes/weft.conf"),
    (
        "clusterCIDRs: [10.244.0.0/16, 'fd00:10:244::/56']",
        "cluster_cidrs",
        ("10.244.0.0/16", "fd00:10:244::/56"),
    ),
    ("serviceCIDRs: ['FD00::/108']", "service_cidrs", ("fd00::/108",)),
    ("overlay: auto", "overlay", "auto"),
    ("vni: 1", "vni", 1),
    ("vxlanPort: 8472", "vxlan_port", 8472),
    ("mtu: 0", "mtu", 0),
    ("mtu: 9000", "mtu", 9000),
    ("txChecksumOffload: off", "tx_checksum_offload", "off"),
    ("txChecksumOffload: 'off'", "tx_checksum_offload", "off"),
    ("masquerade: false", "masquerade", False),
    ("nonMasqueradeCIDRs: []", "non_masquerade_cidrs", ()),
    ("nodePortAddresses: [192.0.2.0/24]", "node_port_addresses", ("192.0.2.0/24",)),
    ("masqueradeMark: 2147483648", "masquerade_mark", 1 << 31),
    ("cooldownSeconds: 0", "cooldown_seconds", 0),
    ("conntrackMaxPerCore: 0", "conntrack_max_per_core", 0),
    ("conntrackMin: 1073741824", "conntrack_min", 1 << 30),
    ("conntrackEstablishedSeconds: 7200", "conntrack_established_seconds", 7200),
    ("conntrackCloseWaitSeconds: 0", "conntrack_close_wait_seconds", 0),
    ("policyLogRate: 0", "policy_log_rate", 0),
    ("policyLogGroup: 7", "policy_log_group", 7),
    ("resyncSeconds: 5", "resync_seconds", 5),
    ("maxConcurrentAdds: 8", "max_concurrent_adds", 8),
    ("metricsAddress: ''", "metrics_address", ""),
    ("metricsAddress: '[::1]:9465'", "metrics_address", "[::1]:9465"),
    ("healthAddress: 127.0.0.1:10256", "health_address", "127.0.0.1:10256"),
    ("probeAddress: ':9466'", "probe_address", ":9466"),
    ("logLevel: debug", "log_level", "debug"),
    ("logFormat: console", "log_format", "console"),
    (
        "dns: {nameservers: [10.96.0.10], search: [svc.cluster.local], domain: cluster.local}",
        "dns",
        {"nameservers": ["10.96.0.10"], "search": ["svc.cluster.local"], "domain": ["cluster.local"]},
    ),
]


@pytest.mark.parametrize(("text", "field", "value"), VALID)
def test_a_value_is_taken(text: str, field: str, value: object) -> None:
    assert parse(text) == dataclasses.replace(Config(), **{field: value})  # type: ignore[arg-type]


def test_all_keys_are_tried_with_a_valid_value() -> None:
    assert {field for _, field, _ in VALID} == {key.field for key in KEYS}


@pytest.mark.parametrize(
    "text",
    [
        "nodeName: Node_1",
        "nodeName: ''",
        "apiServer: 10.0.0.1:6443",
        "apiServer: https://host:port",
        "apiServer: ftp://host",
        "kubeconfig: relative/path",
        "clusterCIDRs: 10.244.0.0/16",
        "clusterCIDRs: [10.244.0.1/16]",
        "clusterCIDRs: [10.244.0.0]",
        "clusterCIDRs: [10.244.0.0/16, 10.244.0.0/16]",
        "clusterCIDRs: [10]",
        "overlay: geneve",
        "overlay: [vxlan]",
        "vni: 0",
        "vni: 16777216",
        "vni: '4096'",
        "vni: true",
        "vni: 1.5",
        "vxlanPort: 65536",
        "mtu: 575",
        "mtu: null",
        "txChecksumOffload: on",
        "masquerade: 'yes'",
        "masquerade: 1",
        "cooldownSeconds: -1",
        "conntrackMaxPerCore: -1",
        "conntrackEstablishedSeconds: 2147484",
        "resyncSeconds: 0",
        "maxConcurrentAdds: 0",
        "metricsAddress: 9465",
        "metricsAddress: '::1:9465'",
        "metricsAddress: 'localhost:9465'",
        "metricsAddress: ':0'",
        "healthAddress: ':'",
        "logLevel: INFO",
        "dns: [10.96.0.10]",
        "dns: {servers: []}",
        "dns: {nameservers: [dns.example]}",
        "dns: {search: cluster.local}",
    ],
)
def test_a_wrong_value_is_refused_by_name_value_and_allowed(text: str) -> None:
    ((name, value),) = yaml.safe_load(text).items()
    with pytest.raises(ConfigError) as caught:
        parse(text, "weftd.yaml")
    message = str(caught.value)
    allowed = next(key.allowed for key in KEYS if key.name == name)
    assert message == f"weftd.yaml: {name}: {value!r} is not allowed; allowed: {allowed}"


def test_an_unknown_key_is_refused_and_the_nearest_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'clusterCidrs'; did you mean clusterCIDRs\?"):
        parse("clusterCidrs: []")
    with pytest.raises(ConfigError, match="known keys: nodeName, apiServer"):
        parse("colour: blue")


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("vni: 0\nmtuu: 1\noverlay: x\n3: 4\n")
    assert len(str(caught.value).splitlines()) == 4


def test_what_is_right_beside_a_fault_can_be_used_to_tell_of_it() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("vni: 0\napiServer: https://10.0.0.1:6443\nnodeName: a")
    assert caught.value.usable == Config(api_server="https://10.0.0.1:6443", node_name="a")


@pytest.mark.parametrize(
    "text", ["a: [", "- a", "text", "vni: 1\nvni: 2", "x: !!python/object:os.system {}", "\t"]
)
def test_what_is_no_plain_mapping_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text)


def test_an_absent_file_means_the_defaults_unless_it_was_asked_for(tmp_path: object) -> None:
    assert config.load(f"{tmp_path}/none.yaml") == Config()
    with pytest.raises(ConfigError, match="does not exist"):
        config.load(f"{tmp_path}/none.yaml", required=True)


def test_an_unreadable_file_is_an_error(tmp_path: object) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        config.load(str(tmp_path))
    path = f"{tmp_path}/binary.yaml"
    with open(path, "wb") as file:
        file.write(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="can't be read"):
        config.load(path)


def test_the_node_name_comes_from_configuration_environment_host() -> None:
    assert config.node_name(Config(node_name="a"), {"NODE_NAME": "b"}) == "a"
    assert config.node_name(Config(), {"NODE_NAME": "b"}) == "b"
    assert config.node_name(Config(), {}) == config.node_name(Config(), {}).lower() != ""


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [(":80", None, 80), ("127.0.0.1:1", "127.0.0.1", 1), ("[::]:65535", "::", 65535)],
)
def test_listen_addresses(text: str, host: str | None, port: int) -> None:
    assert config.split_listen(text) == (host, port)
