"""Every Prometheus metric of the daemon, declared in one place, in a registry of its own.

Those who do the work set the values; nothing is computed here. Times are in seconds. Names, types and labels
are an interface to operators' dashboards: they change only with a line in the change log.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

_REQUEST_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PHASE_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
_RULES_BUCKETS = tuple(0.001 * 2**power for power in range(15))
_PROGRAMMING_BUCKETS = (0.25, 0.5, *range(1, 60), *range(60, 120, 5), *range(120, 301, 30))
_SYNC_BUCKETS = (0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

# The time at which a counter was made says nothing here and would double the number of series.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """The daemon's metrics; one instance per process, several in tests."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.build = Gauge(
            "weft_build_info", "Always 1; the version is a label.", ["version"], registry=registry
        )
        self.ready = Gauge(
            "weft_ready", "1 while the daemon is synced and serves the runtime.", registry=registry
        )
        self.startup_seconds = Gauge(
            "weft_startup_seconds",
            "From the process's start until ready for the first time.",
            registry=registry,
        )
        self.loop_lag = Histogram(
            "weft_event_loop_lag_seconds",
            "How much later than asked the event loop ran a timer.",
            registry=registry,
            buckets=_PHASE_BUCKETS,
        )
        self.findings = Gauge(
            "weft_findings",
            "Findings that hold now (see weftctl status).",
            ["name", "level"],
            registry=registry,
        )

        # CNI
        self.cni_requests = Counter(
            "weft_cni_requests_total",
            "Answered requests of the container runtime; code 0 is success, others are CNI error codes.",
            ["command", "code"],
            registry=registry,
        )
        self.cni_seconds = Histogram(
            "weft_cni_request_seconds",
            "From handler entry to reply.",
            ["command"],
            registry=registry,
            buckets=_REQUEST_BUCKETS,
        )
        self.cni_phase_seconds = Histogram(
            "weft_cni_phase_seconds",
            "Parts of a request: waiting for its turn, IPAM, and the steps of wiring.",
            ["command", "phase"],
            registry=registry,
            buckets=_PHASE_BUCKETS,
        )
        self.cni_in_flight = Gauge(
            "weft_cni_in_flight", "Requests being worked on or waiting.", registry=registry
        )
        self.deletions_pending = Gauge(
            "weft_deletions_pending",
            "DELs recorded while the daemon was down, not yet done.",
            registry=registry,
        )
        self.attachments = Gauge("weft_attachments", "Attachments of pods on this node.", registry=registry)
        self.leaks = Counter(
            "weft_leaks_collected_total",
            "Attachments released without a DEL: their pod was gone.",
            registry=registry,
        )

        # IPAM
        self.ipam_addresses = Gauge(
            "weft_ipam_addresses",
            "Addresses of each pool of this node by state: used, cooling, free.",
            ["pool", "state"],
            registry=registry,
        )
        self.ipam_exhausted = Counter(
            "weft_ipam_exhausted_total",
            "ADDs refused because a pool was exhausted.",
            ["pool"],
            registry=registry,
        )

        # Cluster
        self.api_connected = Gauge(
            "weft_api_connected",
            "1 while the list-watch of this kind is in contact.",
            ["kind"],
            registry=registry,
        )
        self.api_lists = Counter(
            "weft_api_lists_total", "Full lists read, the first included.", ["kind"], registry=registry
        )
        self.api_watches = Counter("weft_api_watches_total", "Watches opened.", ["kind"], registry=registry)
        self.api_events = Counter(
            "weft_api_events_total", "Watch events received.", ["kind", "type"], registry=registry
        )
        self.api_errors = Counter(
            "weft_api_errors_total",
            "Lists and watches that failed: HTTP status, or connect, timeout, protocol.",
            ["kind", "reason"],
            registry=registry,
        )
        self.objects = Gauge("weft_objects", "Objects in the store.", ["kind"], registry=registry)
        self.events_dropped = Counter(
            "weft_kubernetes_events_dropped_total",
            "Kubernetes events not posted: repeats, rate limit, API errors.",
            ["reason"],
            registry=registry,
        )

        # Kernel
        self.sync_seconds = Histogram(
            "weft_sync_seconds",
            "Bringing the kernel in line: kind change (dirty keys) or resync (all compared).",
            ["kind"],
            registry=registry,
            buckets=_SYNC_BUCKETS,
        )
        self.sync_last = Gauge(
            "weft_sync_last_timestamp_seconds",
            "When the kernel last had no difference left.",
            registry=registry,
        )
        self.sync_errors = Counter(
            "weft_sync_errors_total", "Applications that failed in part.", registry=registry
        )
        self.repairs = Counter(
            "weft_repairs_total",
            "Differences in the kernel that no change of ours explains, by kind of object.",
            ["kind"],
            registry=registry,
        )
        self.writer_queue = Gauge(
            "weft_writer_queue",
            "Waiting for the writer: attachment jobs, bulk keys.",
            ["kind"],
            registry=registry,
        )

        # Services, by the names that kube-proxy gives to the same
        self.services_seconds = Histogram(
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "One round of writing changed Services to the kernel.",
            registry=registry,
            buckets=_RULES_BUCKETS,
        )
        self.services_last = Gauge(
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
            "When a round of writing Services last succeeded.",
            registry=registry,
        )
        self.services_queued = Gauge(
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
            "When a Service or its endpoints last changed.",
            registry=registry,
        )
        self.service_changes = Counter(
            "kubeproxy_sync_proxy_rules_service_changes_total",
            "Changes of Services received.",
            registry=registry,
        )
        self.service_changes_pending = Gauge(
            "kubeproxy_sync_proxy_rules_service_changes_pending",
            "Changes of Services received and not yet in the kernel.",
            registry=registry,
        )
        self.endpoint_changes = Counter(
            "kubeproxy_sync_proxy_rules_endpoint_changes_total",
            "Changes of EndpointSlices received.",
            registry=registry,
        )
        self.endpoint_changes_pending = Gauge(
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
            "Changes of EndpointSlices received and not yet in the kernel.",
            registry=registry,
        )
        self.services_programming = Histogram(
            "kubeproxy_network_programming_duration_seconds",
            "From the change of a Pod or Service that caused an EndpointSlice until the kernel has it.",
            registry=registry,
            buckets=_PROGRAMMING_BUCKETS,
        )

        # NetworkPolicy
        self.policy_packets = Counter(
            "weft_policy_accepted_packets_total",
            "First packets of connections that a policy let pass, by policy and direction.",
            ["policy", "direction"],
            registry=registry,
        )
        self.policy_bytes = Counter(
            "weft_policy_accepted_bytes_total",
            "Bytes of these packets.",
            ["policy", "direction"],
            registry=registry,
        )
        self.policy_denied = Counter(
            "weft_policy_denied_packets_total",
            "Packets that no policy let pass, by pod of this node and direction.",
            ["pod", "direction"],
            registry=registry,
        )
        self.policy_logged = Counter(
            "weft_policy_denied_logged_total",
            "Denied packets that were logged one by one (see policyLogRate).",
            registry=registry,
        )

        # Connection tracking
        self.flows_deleted = Counter(
            "weft_conntrack_flows_deleted_total",
            "UDP flows deleted because their backend serves no more.",
            registry=registry,
        )
        self.connections_cut = Counter(
            "weft_policy_connections_cut_total",
            "Connections under way that were cut because a NetworkPolicy forbids them by now.",
            registry=registry,
        )
        self.conntrack_entries = Gauge(
            "weft_conntrack_entries", "Flows tracked on this node.", registry=registry
        )
        self.conntrack_limit = Gauge(
            "weft_conntrack_limit",
            "Most flows that the kernel tracks (nf_conntrack_max).",
            registry=registry,
        )
