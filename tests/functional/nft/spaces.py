"""Network namespaces for these tests, and sockets inside them."""

from __future__ import annotations

import contextlib
import os
import socket as sockets
import subprocess
from itertools import count
from typing import TYPE_CHECKING

from datapath.netns import entered, open_namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTLE_SECONDS = 0.15
"""How long a packet that should not come is waited for; on these links one that comes takes microseconds."""
_numbers = count(1)


class Inside:
    """A network namespace to open sockets in, by its descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def socket(self, family: int, kind: int = sockets.SOCK_DGRAM, protocol: int = 0) -> sockets.socket:
        with entered(self.descriptor):
            opened = sockets.socket(family, kind, protocol)
        opened.settimeout(SETTLE_SECONDS)
        return opened

    @contextlib.contextmanager
    def receiver(self, address: str, port: int) -> Iterator[sockets.socket]:
        """A UDP socket bound to an address."""
        family = sockets.AF_INET6 if ":" in address else sockets.AF_INET
        with self.socket(family) as opened:
            opened.bind((address, port))
            yield opened

    @contextlib.contextmanager
    def wire(self, link: str) -> Iterator[sockets.socket]:
        """A socket that sends and receives whole frames on a link."""
        with self.socket(sockets.AF_PACKET, sockets.SOCK_RAW) as opened:
            opened.bind((link, 3))
            opened.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 1 << 20)
            yield opened

    def mac(self, link: str) -> bytes:
        with self.socket(sockets.AF_PACKET, sockets.SOCK_RAW) as opened:
            opened.bind((link, 0))
            found: bytes = opened.getsockname()[4]
            return found

    def read(self, path: str) -> str:
        with entered(self.descriptor), open(path, encoding="utf-8") as file:
            return file.read()


class Space(Inside):
    """A namespace of our own, with a name for `ip` and `nft`."""

    def __init__(self, name: str) -> None:
        self.name = name
        _run("ip", "netns", "add", name)
        super().__init__(open_namespace(f"/run/netns/{name}"))
        self.ip("link set lo up")

    def close(self) -> None:
        os.close(self.descriptor)
        _run("ip", "netns", "del", self.name)

    def ip(self, *commands: str) -> None:
        """Run `ip` once for all commands."""
        _run("ip", "-n", self.name, "-batch", "-", text="\n".join(commands) + "\n")

    def run(self, *command: str, check: bool = True, text: str = "") -> str:
        return _run("ip", "netns", "exec", self.name, *command, check=check, text=text)

    def nft(self, text: str) -> None:
        self.run("nft", "-f", "-", text=text)

    def set(self, **settings: str) -> None:
        """Write settings, named like net__ipv4__ip_forward."""
        with entered(self.descriptor):
            for name, value in settings.items():
                with open("/proc/sys/" + name.replace("__", "/"), "w", encoding="ascii") as file:
                    file.write(value)


@contextlib.contextmanager
def spaces(*names: str) -> Iterator[tuple[Space, ...]]:
    """Namespaces with these endings of their names, deleted in the end."""
    with contextlib.ExitStack() as stack:
        made = []
        for name in names:
            space = Space(f"weft-t-nft-{os.getpid()}-{next(_numbers)}-{name}")
            stack.callback(space.close)
            made.append(space)
        yield tuple(made)


def ask(client: sockets.socket, target: tuple[str, int], server: sockets.socket) -> tuple[str, int] | None:
    """Send a datagram and return the source that the server sees; None when nothing arrives."""
    token = os.urandom(8)
    with contextlib.suppress(PermissionError, OSError):
        client.sendto(token, target)
    try:
        while True:
            data, source = server.recvfrom(2048)
            if data == token:
                return source[0], source[1]
    except TimeoutError:
        return None


def _run(*command: str, check: bool = True, text: str = "") -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}\n{text}\n{done.stderr}")
    return done.stdout
