"""Which kinds the embedded API server knows and how their URLs are formed. Stores nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lab.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterator

Object = dict[str, Any]
"""A Kubernetes object as decoded JSON."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of the API: Resource("", "v1", "Pod", "pods", namespaced=True)."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool

    @property
    def api_version(self) -> str:
        """The apiVersion of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version


_BUILTIN = """
v1 Namespace namespaces cluster
v1 Node nodes cluster
v1 PersistentVolume persistentvolumes cluster
v1 ConfigMap configmaps
v1 Endpoints endpoints
v1 Event events
v1 Pod pods
v1 Secret secrets
v1 Service services
v1 ServiceAccount serviceaccounts
apps/v1 DaemonSet daemonsets
apps/v1 Deployment deployments
apps/v1 ReplicaSet replicasets
apps/v1 StatefulSet statefulsets
coordination.k8s.io/v1 Lease leases
discovery.k8s.io/v1 EndpointSlice endpointslices
events.k8s.io/v1 Event events
networking.k8s.io/v1 Ingress ingresses
networking.k8s.io/v1 NetworkPolicy networkpolicies
networking.k8s.io/v1 ServiceCIDR servicecidrs cluster
networking.k8s.io/v1 IPAddress ipaddresses cluster
rbac.authorization.k8s.io/v1 ClusterRole clusterroles cluster
rbac.authorization.k8s.io/v1 ClusterRoleBinding clusterrolebindings cluster
rbac.authorization.k8s.io/v1 Role roles
rbac.authorization.k8s.io/v1 RoleBinding rolebindings
apiextensions.k8s.io/v1 CustomResourceDefinition customresourcedefinitions cluster
"""


def _builtin() -> Iterator[Resource]:
    for line in _BUILTIN.split("\n"):
        if line:
            api_version, kind, plural, *scope = line.split()
            group, _, version = api_version.rpartition("/")
            yield Resource(group, version, kind, plural, namespaced=not scope)


class Catalogue:
    """The known resources; custom ones are added by CustomResourceDefinition objects."""

    def __init__(self) -> None:
        self._by_path = {(r.group, r.version, r.plural): r for r in _builtin()}

    def __iter__(self) -> Iterator[Resource]:
        return iter(self._by_path.values())

    def at(self, group: str, version: str, plural: str) -> Resource:
        """The resource that a URL names; ApiError 404 where there is none."""
        try:
            return self._by_path[group, version, plural]
        except KeyError:
            message = "the server could not find the requested resource"
            raise ApiError(404, "NotFound", message) from None

    def of(self, item: Object) -> Resource:
        """The resource that an object belongs to, by its apiVersion and kind."""
        group, _, version = str(item.get("apiVersion", "")).rpartition("/")
        for resource in self:
            if (resource.group, resource.version, resource.kind) == (group, version, item.get("kind")):
                return resource
        message = f"no matches for kind {item.get('kind')!r} in version {item.get('apiVersion')!r}"
        raise ApiError(404, "NotFound", message)

    def named(self, word: str) -> Resource:
        """The resource that a person means: plural, kind in any case, or the usual short name."""
        short = {"no": "nodes", "po": "pods", "ns": "namespaces", "svc": "services", "ev": "events"}
        wanted = short.get(word.lower(), word.lower())
        for resource in self:
            if wanted in (resource.plural, resource.kind.lower()):
                return resource
        raise ApiError(404, "NotFound", f"the server doesn't have a resource type {word!r}")

    def define(self, definition: Object) -> None:
        """Add what a CustomResourceDefinition defines."""
        spec = definition["spec"]
        for version in spec["versions"]:
            resource = Resource(
                spec["group"],
                version["name"],
                spec["names"]["kind"],
                spec["names"]["plural"],
                namespaced=spec.get("scope") == "Namespaced",
            )
            self._by_path[resource.group, resource.version, resource.plural] = resource
