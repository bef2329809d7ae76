"""When Python looks for cyclic garbage in this process: seldom, and never in what lives as long as it.

What the daemon keeps is values without cycles. With Python's own thresholds a third of the time in which
thousands of objects come in goes into walking them again and again. Cycles that do occur, as in exceptions,
mostly die young, and the collections of the young go on.
"""

from __future__ import annotations

import gc

THRESHOLDS = (10_000, 10, 100)
"""Objects more than before until the youngest are looked through; the older generations follow a tenth and a
thousandth as often."""


def slow_down() -> None:
    """Collect seldom from now on."""
    gc.set_threshold(*THRESHOLDS)


def settle() -> None:
    """Collect once, and take what is there now for permanent: no collection walks it again."""
    gc.collect()
    gc.freeze()
