"""The command `weftd`: reads the configuration, takes the lock, runs the agent, tells how it ended.

`weftd install` puts the shim in place instead and ends: a DaemonSet's init container.

Exit codes: 0 stopped as asked; 1 a part of the daemon failed; 2 wrong configuration or arguments; 3 another
daemon serves this node.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daemon.config import Config, ConfigError

FAILED, MISCONFIGURED, LOCKED = 1, 2, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the daemon; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.command == "install":
        return _install(options.source, options.directory)
    # gRPC reads these once, when it is imported. Nothing here forks, and its own log lines are of no use to
    # anyone.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    # structlog imports rich, which weftctl uses, for coloured tracebacks: 3 MiB that nobody here looks at.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]

    from daemon import config as configuration
    from daemon import logs

    try:
        config = configuration.load(
            options.config or configuration.DEFAULT_PATH, required=bool(options.config)
        )
    except configuration.ConfigError as error:
        logs.configure("info", "json")
        for fault in str(error).splitlines():
            logs.log.error("wrong configuration", fault=fault)
        _tell_cluster(error)
        return MISCONFIGURED
    logs.configure(config.log_level, config.log_format)
    return _run(config)


def _install(source: str, directory: str) -> int:
    from daemon import install, logs

    logs.configure("info", "json")
    try:
        written = install.install(source or install.default_source(), directory)
    except install.InstallError as error:
        logs.log.error("not installed", reason=str(error))
        return FAILED
    logs.log.info("installed", directory=directory, written=list(written), version=version())
    return 0


def _tell_cluster(error: ConfigError) -> None:
    """Let `kubectl describe node` show why the daemon does not start."""
    import uvloop

    from daemon.agent import Paths, tell_cluster

    uvloop.run(tell_cluster(error.usable, "ConfigurationWrong", str(error), paths=Paths()))


def _run(config: Config) -> int:
    import uvloop

    from daemon import lock, logs
    from daemon.agent import Agent, Paths, stop_on_signals

    async def run() -> None:
        agent = Agent(config, version=version(), paths=paths)
        stop_on_signals(agent)
        await agent.run()

    paths = Paths()
    try:
        with lock.only_daemon(paths.lock):
            uvloop.run(run())
    except lock.LockedError as error:
        logs.log.error("not started", reason=str(error))
        return LOCKED
    except Exception as failure:  # noqa: BLE001 - the one place where whatever failed is told
        for leaf in _leaves(failure):
            logs.log.error("the daemon failed", error=f"{type(leaf).__name__}: {leaf}", exc_info=leaf)
        return FAILED
    return 0


def _leaves(error: BaseException) -> list[BaseException]:
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for inner in error.exceptions for leaf in _leaves(inner)]


def version() -> str:
    """The version of the installed package."""
    return importlib.metadata.version("weft")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="weftd", description="The Weft daemon: one per node, as root.")
    parser.add_argument(
        "--config", metavar="PATH", help="configuration file (default: /etc/weft/weftd.yaml, if any)"
    )
    parser.add_argument("--version", action="version", version=f"weftd {version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="instead of serving the node")
    install = commands.add_parser("install", help="put the CNI plugin in place, and end")
    install.add_argument("--source", metavar="PATH", help="the shim (default: the one of this installation)")
    install.add_argument(
        "--directory", metavar="PATH", default="/opt/cni/bin", help="of CNI plugins (default: /opt/cni/bin)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
