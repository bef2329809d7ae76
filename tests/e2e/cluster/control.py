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

ADMINISTRATOR = "/O=system:masters/CN=administrator"


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
    def prepare(cls, programs: Path, directory: Path, stack: network.Stack) -> ControlPlane:
        """Makes certificates and command lines; starts nothing."""
        authority = Authority.create(directory / "pki")
        administrator = authority.sign("administrator", ADMINISTRATOR)
        authority.kubeconfig(stack.url, administrator)
        names = (
            *(f"IP:{address}" for address in (*network.SERVER, "127.0.0.1", stack.kubernetes_service)),
            *("DNS:kubernetes", "DNS:kubernetes.default", "DNS:kubernetes.default.svc"),
        )
        serving = authority.sign("kube-apiserver", "/CN=kube-apiserver", *names)
        accounts = authority.service_accounts

        def component(name: str, *arguments: str) -> Program:
            user = authority.sign(name, f"/CN=system:{name}")
            kubeconfig = authority.kubeconfig(stack.url, user)
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
            f"--advertise-address={stack.server}",
            "--bind-address=::",
            f"--service-cluster-ip-range={stack.service_cidrs}",
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
            Api(stack.url, authority, administrator),
            Program("etcd", etcd, directory / "etcd.log"),
            Program(
                "kube-apiserver", [programs / "kube-apiserver", *server], directory / "kube-apiserver.log"
            ),
            component(
                "kube-controller-manager",
                f"--cluster-cidr={stack.pod_cidrs}",
                f"--service-cluster-ip-range={stack.service_cidrs}",
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
