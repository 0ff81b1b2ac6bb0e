"""The error that ends an installation."""

from __future__ import annotations


class RefusedError(Exception):
    """The bundle is not installed, or not used; the message says why, and the remedy."""
