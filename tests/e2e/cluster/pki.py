"""The cluster's certificate authority, the certificates it signs, and kubeconfigs made of them."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

DAYS = "30"


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate and its key."""

    certificate: Path
    key: Path


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@dataclass(frozen=True, slots=True)
class Authority:
    """Signs certificates into a directory of its own."""

    directory: Path

    @property
    def certificate(self) -> Path:
        return self.directory / "ca.crt"

    @property
    def service_accounts(self) -> Identity:
        """The key pair of service account tokens; the certificate is only a public key."""
        return Identity(self.directory / "accounts.pub", self.directory / "accounts.key")

    @classmethod
    def create(cls, directory: Path) -> Authority:
        directory.mkdir(parents=True)
        authority = cls(directory)
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *(
                "-keyout",
                directory / "ca.key",
                "-out",
                authority.certificate,
                "-days",
                DAYS,
                "-subj",
                "/CN=weft-e2e",
            ),
        )
        accounts = authority.service_accounts
        _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", accounts.key)
        _openssl("ec", "-in", accounts.key, "-pubout", "-out", accounts.certificate)
        return authority

    def sign(self, name: str, subject: str, *alternatives: str) -> Identity:
        """Makes a key and a certificate for client and server use.

        Args:
            name: of the files.
            subject: distinguished name as openssl takes it, "/O=group/CN=user".
            *alternatives: "IP:..." and "DNS:..." entries.
        """
        identity = Identity(self.directory / f"{name}.crt", self.directory / f"{name}.key")
        request = self.directory / f"{name}.csr"
        extensions = self.directory / f"{name}.ext"
        extensions.write_text(f"subjectAltName={','.join((*alternatives, f'DNS:{name}'))}\n")
        _openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", identity.key, "-out", request, "-subj", subject),
        )
        _openssl(
            *("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.directory / "ca.key"),
            *("-CAcreateserial", "-out", identity.certificate, "-days", DAYS, "-extfile", extensions),
        )
        return identity

    def kubeconfig(self, server: str, identity: Identity) -> Path:
        """Writes a kubeconfig beside the certificate; JSON is YAML, too."""
        path = identity.certificate.with_suffix(".kubeconfig")
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "e2e", "cluster": {"server": server, "certificate-authority": str(self.certificate)}}
            ],
            "users": [
                {
                    "name": "user",
                    "user": {
                        "client-certificate": str(identity.certificate),
                        "client-key": str(identity.key),
                    },
                }
            ],
            "contexts": [{"name": "e2e", "context": {"cluster": "e2e", "user": "user"}}],
            "current-context": "e2e",
        }
        path.write_text(json.dumps(content, indent=1))
        return path
