"""Extras of edgeprune's that a command needs: found missing before anything is begun."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from edgeprune.errors import UsageError


def check_extra(extra: str, modules: Sequence[str], what: str) -> None:
    """Refuse to begin what would fail later for want of a package.

    Args:
        extra: Of edgeprune, which brings them.
        modules: Top-level names that are imported.
        what: Needs them.

    Raises:
        UsageError: They are not all installed.
    """
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise UsageError(f"{what} needs packages that are not installed", got=", ".join(missing),
                         remedy=f"pip install 'edgeprune[{extra}]'")
