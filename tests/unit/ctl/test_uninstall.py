"""weftctl uninstall: what it removes, in which order, what it leaves, and when it refuses."""

from __future__ import annotations

import fcntl
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from ctl import uninstall as module
from ctl.__main__ import cli
from ctl.exits import Exit
from ctl.uninstall import Places
from daemon import install
from daemon.agent import Paths
from daemon.cni import conflist
from datapath import removal
from datapath.errors import DatapathError
from datapath.removal import Remains
from ipam import alias
from ipam.record import AttachmentKey, Record

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

POD = alias.write(
    Record(
        key=AttachmentKey("weft", "c1", "eth0"),
        netns="/run/netns/n1",
        host_link="weft00000000001",
        mac=bytes(6),
        mtu=1450,
        addresses=(bytes((10, 1, 1, 2)),),
        pod_namespace="default",
        pod_name="web",
    )
)
NOTHING = Remains({}, (), (), ())
IN_USE = Remains({"weft00000000001": POD}, ("weft.vxlan",), ("10.1.2.0/24",), ((2, "weft"), (10, "weft")))


class Node:
    """A node's files below a directory, and a kernel that remembers what was removed."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.remains = NOTHING
        self.log: list[str] = []
        for name in ("run/weft", "etc/cni/net.d", "opt/cni/bin"):
            (root / name).mkdir(parents=True)
        for name in ("Socket", "Nft"):
            monkeypatch.setattr(module, name, Nothing)
        monkeypatch.setattr(removal, "find", lambda *_: self.remains)
        monkeypatch.setattr(removal, "remove_links", self._remove_links)
        monkeypatch.setattr(removal, "remove_routes", lambda _: self._note("routes"))
        monkeypatch.setattr(removal, "remove_tables", lambda _: self._note("tables"))

    def install(self) -> None:
        (self.root / "opt/cni/bin/weft").write_bytes(b"\x7fELF" + install.MARK)
        (self.root / "opt/cni/bin/loopback").write_bytes(b"\x7fELF" + install.MARK)
        (self.root / "etc/cni/net.d/05-weft.conflist").write_text("{}")
        (self.root / "run/weft/deletions").mkdir()
        for name in ("lock", "state.db", "deletions/1"):
            (self.root / "run/weft" / name).write_text("")

    def files(self) -> list[str]:
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file())

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(cli, ["uninstall", f"--root={self.root}", *arguments])

    def _remove_links(self, _route: object, names: Any) -> None:
        self._note(" ".join(["links", *names]))

    def _note(self, what: str) -> None:
        self.log.append(what)
        self.log += self.files()


class Nothing:
    def __enter__(self) -> Nothing:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(tmp_path, monkeypatch)


def test_it_knows_the_daemons_places() -> None:
    assert Places().state == Paths().run
    assert Places().conflists == Paths().conflists
    assert module.CONFLIST_NAMES[0] == conflist.NAME
    assert module.MARK == install.MARK


def test_nothing_of_ours_is_left_and_everything_of_others_is(node: Node) -> None:
    node.install()
    others = {"opt/cni/bin/bridge": b"theirs", "etc/cni/net.d/10-other.conflist": b"{}"}
    for name, content in others.items():
        (node.root / name).write_bytes(content)
    result = node.run()
    assert result.exit_code == Exit.OK, result.output
    assert node.files() == sorted(others)
    assert not (node.root / "run/weft").exists()
    assert f"removed {node.root}/run/weft" in result.stdout.splitlines()


def test_a_plugin_of_the_name_that_is_somebody_elses_stays(node: Node) -> None:
    node.install()
    (node.root / "opt/cni/bin/loopback").write_bytes(b"theirs")
    assert node.run().exit_code == Exit.OK
    assert node.files() == ["opt/cni/bin/loopback"]


def test_files_that_were_interrupted_are_removed_too(node: Node) -> None:
    node.install()
    (node.root / "opt/cni/bin/.weft.weft-new").write_bytes(b"\x7fE")
    (node.root / "etc/cni/net.d/.05-weft.conflist.tmp").write_bytes(b"{")
    assert node.run().exit_code == Exit.OK
    assert node.files() == []


def test_it_refuses_while_pods_use_it_and_touches_nothing(node: Node) -> None:
    node.install()
    node.remains = IN_USE
    before = node.files()
    result = node.run()
    assert result.exit_code == Exit.FOUND
    assert "default/web" in result.stderr
    assert "--force" in result.stderr
    assert node.files() == before
    assert node.log == []


def test_by_force_it_goes_in_the_order_that_leaves_nothing_half_working(node: Node) -> None:
    node.install()
    node.remains = IN_USE
    result = node.run("--force")
    assert result.exit_code == Exit.OK, result.output
    acts = [line for line in node.log if not line.startswith(("opt", "etc", "run"))]
    assert acts == ["links weft00000000001", "links weft.vxlan", "routes", "tables"]
    at_first = node.log[: node.log.index("links weft.vxlan")]
    assert "etc/cni/net.d/05-weft.conflist" not in at_first
    assert "opt/cni/bin/weft" in node.log[node.log.index("tables") :]
    words = [line.split(":")[0] for line in result.stdout.splitlines()]
    assert words[1:5] == [
        "removed the interfaces of 1 pods",
        "removed 1 links",
        "removed 1 routes",
        "removed 2 nftables tables",
    ]


def test_a_trial_changes_nothing(node: Node) -> None:
    node.install()
    before = node.files()
    node.remains = IN_USE
    result = node.run("--dry-run", "--force")
    assert result.exit_code == Exit.OK
    assert node.files() == before
    assert node.log == []
    assert all(line.startswith("would remove") for line in result.stdout.splitlines())


def test_it_refuses_while_the_daemon_runs(node: Node) -> None:
    node.install()
    with (node.root / "run/weft/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = node.run("--force")
    assert result.exit_code == Exit.FAILED
    assert "weft.dev/exclude" in result.stderr
    assert "etc/cni/net.d/05-weft.conflist" in node.files()


def test_what_was_never_installed_is_no_error_and_neither_is_a_repetition(node: Node) -> None:
    (node.root / "run/weft").rmdir()
    assert node.run().exit_code == Exit.OK
    result = node.run()
    assert result.exit_code == Exit.OK
    assert result.stdout == ""


def test_what_fails_can_be_repeated(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise DatapathError("routes can't be deleted")

    node.install()
    node.remains = Remains({}, (), ("10.1.2.0/24",), ())
    with monkeypatch.context() as patch:
        patch.setattr(removal, "remove_routes", refuse)
        result = node.run()
    assert result.exit_code == Exit.FAILED
    assert "run the same command again" in result.stderr
    assert "opt/cni/bin/weft" in node.files()
    assert node.run().exit_code == Exit.OK
    assert node.files() == []
