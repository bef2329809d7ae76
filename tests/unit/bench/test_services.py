from __future__ import annotations

import os
import time

from bench import services
from bench.kube_proxy import configuration
from bench.lab_node import processor_seconds


def _seen(factor: float) -> services.Seen:
    return services.Seen(
        load=2.0 * factor,
        moved=[0.002 * factor] * 10,
        added=[0.003 * factor] * 10,
        churn=[0.004 * factor] * 98 + [0.03 * factor] * 2,
        load_processor=1.0 * factor,
        churn_processor=0.1 * factor,
        memory=50.0 * factor,
    )


def test_the_table_compares_with_kube_proxy_and_tells_bounds() -> None:
    rows = {row[0]: row for row in services.compared(1000, _seen(1), _seen(50)).rows}
    assert rows["first load, from the program's start"][1:] == (
        *("2.00 s", "kube-proxy", "100.00 s", "50.0", ">= 10", "kept"),
    )
    assert rows["one endpoint moved, median"][1:5] == ("2.00 ms", "kube-proxy", "100.00 ms", "50.0")
    assert rows["one endpoint moved, median"][-1] == "BROKEN"
    assert rows["that p99 against its bound"][1:] == ("30.00 ms", "", "", "", "<= 20 ms", "BROKEN")
    assert rows["processor share in churn"][1] == "10.00 %"


def test_the_processor_time_of_a_process_grows_as_it_works() -> None:
    before = processor_seconds(os.getpid())
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    assert 0.05 <= processor_seconds(os.getpid()) - before <= 1.0


def test_kube_proxy_is_what_it_is_by_default_but_for_its_surroundings() -> None:
    found = configuration("proxied")
    assert found["mode"] == "nftables"
    assert not any("sync" in key.lower() for key in found)
