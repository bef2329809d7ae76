"""CNI errors: the specification's codes, our own from 100 on, and the JSON object that the runtime gets.

Owns no logic of any command. `CODES` is the documentation of every code that Weft answers with.
"""

from __future__ import annotations

import json
import re
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

NEWEST_VERSION = "1.1.0"


class Code(IntEnum):
    """Error codes: section "Error" of the CNI specification up to 99, Weft's own above."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    DECODING_FAILURE = 6
    INVALID_CONFIG = 7
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    LIMITED_CONNECTIVITY = 51
    SHIM_FAULT = 100
    EXHAUSTED = 101
    INTERFACE_EXISTS = 102
    ALREADY_ATTACHED = 103
    WIRING_FAILED = 104
    NAMESPACE_UNUSABLE = 105
    FAULTY_ATTACHMENT = 106
    STATE_UNWRITABLE = 107
    HOST_PORT_TAKEN = 108
    INTERNAL = 199


CODES: Mapping[Code, str] = {
    Code.INCOMPATIBLE_VERSION: "cniVersion is not one of those supported, or too old for the command",
    Code.UNSUPPORTED_FIELD: "the configuration asks for something that Weft does not do; the field is named",
    Code.UNKNOWN_CONTAINER: "CHECK of an attachment that does not exist, ADD to a sandbox that is gone",
    Code.INVALID_ENVIRONMENT: "an environment variable (CNI_*) is missing or invalid",
    Code.IO_FAILURE: "the shim could not read the configuration or write the result",
    Code.DECODING_FAILURE: "the configuration is not valid JSON or has a field of the wrong type",
    Code.INVALID_CONFIG: "the configuration lacks something or contradicts itself",
    Code.TRY_AGAIN_LATER: "the daemon is not running or not ready yet; nothing was done",
    Code.NOT_AVAILABLE: "STATUS: no ADD can be served now",
    Code.LIMITED_CONNECTIVITY: "STATUS: no ADD can be served now, and existing pods may lack connectivity",
    Code.SHIM_FAULT: "the shim got no proper answer from the daemon: see the daemon's log",
    Code.EXHAUSTED: "every address of the node's podCIDR is in use",
    Code.INTERFACE_EXISTS: "the sandbox already has an interface of the requested name",
    Code.ALREADY_ATTACHED: "ADD of an attachment that exists; DEL it first",
    Code.WIRING_FAILED: "the kernel refused a step; everything was undone",
    Code.NAMESPACE_UNUSABLE: "CNI_NETNS can't be entered: it is none, or out of the daemon's sight",
    Code.FAULTY_ATTACHMENT: "CHECK: what should be there differs; every fault is named",
    Code.STATE_UNWRITABLE: "the state database in /run/weft can't be written",
    Code.HOST_PORT_TAKEN: "another pod of this node holds one of the host ports; it is named",
    Code.INTERNAL: "a defect of Weft: the daemon's log has its trace",
}


class CniError(Exception):
    """A request failed; becomes the error object of the specification.

    Attributes:
        code: what kind of failure.
        details: further words, "" when there are none.
    """

    def __init__(self, code: Code, message: str, details: str = "") -> None:
        self.code = code
        self.details = details
        super().__init__(message)

    def to_json(self, version: str) -> bytes:
        """Return the error object, in words that no runtime takes for success.

        go-cni, which containerd uses, swallows every error of a removal whose text has "not found" in it.
        """
        body: dict[str, object] = {
            "cniVersion": version,
            "code": int(self.code),
            "msg": _unswallowed(str(self)),
        }
        if self.details:
            body["details"] = _unswallowed(self.details)
        return json.dumps(body, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _unswallowed(text: str) -> str:
    return re.sub(r"not[ \t]+found", "missing", text, flags=re.IGNORECASE)
