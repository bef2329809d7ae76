"""One daemon per node: the lock refuses a second one and dies with its holder."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from daemon.lock import LockedError, only_daemon

HOLD = """
import sys, time
from daemon.lock import only_daemon
with only_daemon(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_holder_is_refused_with_the_first_ones_process(tmp_path: object) -> None:
    path = f"{tmp_path}/run/lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=rf"process {holder.pid}\).*holds {path}"), only_daemon(path):
            pass
        holder.kill()
        holder.wait()
        with only_daemon(path), open(path, encoding="ascii") as file:
            assert file.read() == f"{os.getpid()}\n"


def test_the_lock_is_free_again_after_use(tmp_path: object) -> None:
    for _ in range(2):
        with only_daemon(f"{tmp_path}/lock"):
            assert os.stat(f"{tmp_path}/lock").st_mode & 0o777 == 0o600
