"""The exceptions that IPAM raises. Every message says what happened and what to do."""

from __future__ import annotations


class IpamError(Exception):
    """Addresses could not be handed out or taken back."""
