from rich.console import Console

from lab.tables import objects


def shown(kind: str, item: dict[str, object]) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(objects([{"metadata": {"name": "web"}, **item}], kind, namespaces=False))
    return capture.get()


def test_services() -> None:
    spec = {
        "type": "LoadBalancer",
        "clusterIPs": ["10.96.0.1", "fd96::1"],
        "externalIPs": ["203.0.113.1"],
        "ports": [{"port": 80, "nodePort": 30000, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}],
    }
    status = {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}, {"hostname": "x"}]}}
    text = shown("Service", {"spec": spec, "status": status})
    for word in (
        "LoadBalancer",
        "10.96.0.1",
        "fd96::1",
        "203.0.113.1",
        "198.51.100.1",
        "80:30000/TCP",
        "53/UDP",
    ):
        assert word in text


def test_endpoint_slices() -> None:
    endpoints = [
        {"addresses": ["10.0.0.1"]},
        {"addresses": ["10.0.0.2"], "conditions": {"ready": False, "terminating": True}},
        {"addresses": ["10.0.0.3"], "conditions": {"ready": False}},
    ]
    text = shown("EndpointSlice", {"addressType": "IPv4", "endpoints": endpoints, "ports": [{"port": 8080}]})
    for word in ("IPv4", "8080/TCP", "10.0.0.1 ", "10.0.0.2 (terminating)", "10.0.0.3 (not ready)"):
        assert word in text
