"""The control plane: etcd, API server, controller manager and scheduler, in the tests' own namespace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.e2e.cluster import network
from tests.e2e.cluster.api import Api
from tests.e2e.cluster.pki import Authority
from tests.e2e.cluster.processes import Program, wait_for

if TYPE_CHECKING:
    from pathlib import Path

POD_CIDRS = "10.244.0.0/16,fd00:10:244::/48"
SERVICE_CIDRS = "10.96.0.0/16,fd00:10:96::/108"
URL = f"https://{network.SERVER[0]}:6443"
ADMINISTRATOR = "/O=system:masters/CN=administrator"
# The first address of the service range, under which pods know the API server.
SERVER_NAMES = (
    *(f"IP:{address}" for address in (*network.SERVER, "127.0.0.1", "10.96.0.1")),
    *("DNS:kubernetes", "DNS:kubernetes.default", "DNS:kubernetes.default.svc"),
)


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """The programs, and the way to talk with them."""

    authority: Authority
    api: Api
    etcd: Program
    server: Program
    controllers: Program
    scheduler: Program

    @classmethod
    def prepare(cls, programs: Path, directory: Path) -> ControlPlane:
        """Makes certificates and command lines; starts nothing."""
        authority = Authority.create(directory / "pki")
        administrator = authority.sign("administrator", ADMINISTRATOR)
        authority.kubeconfig(URL, administrator)
        serving = authority.sign("kube-apiserver", "/CN=kube-apiserver", *SERVER_NAMES)
        accounts = authority.service_accounts

        def component(name: str, *arguments: str) -> Program:
            user = authority.sign(name, f"/CN=system:{name}")
            kubeconfig = authority.kubeconfig(URL, user)
            credentials = (
                f"--{purpose}kubeconfig={kubeconfig}" for purpose in ("", "authentication-", "authorization-")
            )
            arguments = (*credentials, "--leader-elect=false", *arguments)
            return Program(name, [programs / name, *arguments], directory / f"{name}.log")

        etcd = (
            *("etcd", "--data-dir", str(directory / "etcd"), "--unsafe-no-fsync", "--log-level=warn"),
            *("--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379"),
            "--listen-peer-urls=http://127.0.0.1:2380",
        )
        server = (
            "--etcd-servers=http://127.0.0.1:2379",
            f"--advertise-address={network.SERVER[0]}",
            f"--service-cluster-ip-range={SERVICE_CIDRS}",
            f"--client-ca-file={authority.certificate}",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--kubelet-client-certificate={administrator.certificate}",
            f"--kubelet-client-key={administrator.key}",
            f"--kubelet-certificate-authority={authority.certificate}",
            "--kubelet-preferred-address-types=InternalIP",
            f"--service-account-key-file={accounts.certificate}",
            f"--service-account-signing-key-file={accounts.key}",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged",
            # An outage in the tests is to be short.
            "--shutdown-delay-duration=0s",
        )
        return cls(
            authority,
            Api(URL, authority, administrator),
            Program("etcd", etcd, directory / "etcd.log"),
            Program(
                "kube-apiserver", [programs / "kube-apiserver", *server], directory / "kube-apiserver.log"
            ),
            component(
                "kube-controller-manager",
                f"--cluster-cidr={POD_CIDRS}",
                f"--service-cluster-ip-range={SERVICE_CIDRS}",
                "--allocate-node-cidrs",
                f"--root-ca-file={authority.certificate}",
                f"--service-account-private-key-file={accounts.key}",
                "--use-service-account-credentials",
            ),
            component("kube-scheduler"),
        )

    @property
    def programs(self) -> tuple[Program, ...]:
        return self.etcd, self.server, self.controllers, self.scheduler

    def start(self) -> None:
        """Starts all and waits until the API serves and pods can be created."""
        self.etcd.start()
        self.server.start()
        self.await_server()
        self.controllers.start()
        self.scheduler.start()
        wait_for(
            "the default service account",
            lambda: self.api.get("/api/v1/namespaces/default/serviceaccounts/default"),
            state=self.controllers.tail,
        )

    def await_server(self) -> None:
        wait_for("the API server", self.api.ready, state=self.server.tail)

    def stop(self) -> None:
        for program in reversed(self.programs):
            program.kill()
