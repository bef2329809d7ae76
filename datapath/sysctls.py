"""Where kernel settings can be written. Owns one name.

A container sees /proc/sys read-only, and its runtime refuses to mount anything there; the node's
/proc/sys/net is mounted elsewhere then. Which namespace's settings a file shows
depends on who opens it, not on the mount.
"""

from __future__ import annotations

import os
from typing import Final

WRITABLE: Final = os.environ.get("WEFT_SYSCTLS", "/proc/sys")
"""A directory with the `net` of /proc/sys in it; set by the environment WEFT_SYSCTLS."""
