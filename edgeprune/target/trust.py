"""Trusted host keys, and how a new one is trusted.

In: a target, the key that its host shows. Out: files of host keys. A key that the user has looked
at is kept in the target's own file, which then is the only one that counts for it.
"""

from __future__ import annotations

from pathlib import Path

import paramiko

from edgeprune.errors import DeviceError
from edgeprune.records import write_text
from edgeprune.target.route import Route
from edgeprune.target.target import Target


def known_keys(target: Target | None, route: Route) -> paramiko.HostKeys:
    """Return the host keys that count: of the target's own file, else those that `ssh` knows.

    Args:
        target: None for a hop on the way.
        route: How the host is reached.

    Raises:
        DeviceError: A file cannot be read.
    """
    keys, files = paramiko.HostKeys(), route.known_hosts
    if target is not None and (target.known_hosts is not None or pinned(target, route)):
        files = (own_file(target),)
    for file in files:
        try:
            keys.load(str(file))
        except OSError as error:
            raise DeviceError(f"host keys cannot be read ({error})",
                              remedy="correct 'known_hosts' in the target file") from error
    return keys


def pin(target: Target, route: Route, key: paramiko.PKey) -> Path:
    """Trust a key, and no other of this host; return the file that says so."""
    own = own_file(target)
    lines = own.read_text(encoding="utf-8").splitlines() if own.is_file() else []
    # what is said of other hosts stays as it is; of two keys of a host the first counts
    others = [line for line in lines if not _is_of(line, route.name)]
    write_text(own, "\n".join([f"{route.name} {key.get_name()} {key.get_base64()}", *others, ""]))
    return own


def pinned(target: Target, route: Route) -> paramiko.PKey | None:
    """Return the key that a target's own file holds for it; None when there is none."""
    own = own_file(target)
    if not own.is_file():
        return None
    found = paramiko.HostKeys(str(own)).lookup(route.name)
    return next(iter(found.values()), None) if found else None


def check_replaced(
    target: Target, before: paramiko.PKey | None, key: paramiko.PKey, *, replace: bool
) -> None:
    """Refuse to trust a key in another's place unless the user wants just that.

    Raises:
        DeviceError: There was another one.
    """
    if before is not None and not replace:
        raise changed_key(target, before, key)


def changed_key(target: Target, before: paramiko.PKey, key: paramiko.PKey) -> DeviceError:
    """Say that a host shows another key than the one that is trusted."""
    return DeviceError(
        f"target {target.name}: the host key has changed", got=key.fingerprint,
        remedy=f"expected {before.fingerprint}; someone may be in between. Only when you know why "
        f"it changed: edgeprune target trust {target.name} --replace")


def check_shown(target: Target, key: paramiko.PKey, fingerprint: str) -> None:
    """Refuse a key that is not the one that the user knows.

    Raises:
        DeviceError: It is another one.
    """
    if key.fingerprint != fingerprint:
        raise DeviceError(f"target {target.name}: its host shows another key",
                          got=key.fingerprint, remedy=f"expected {fingerprint}; someone may be in "
                          "between, or it is another machine")


def own_file(target: Target) -> Path:
    """Return the target's own file of host keys, which need not be there."""
    return (target.known_hosts or target.file.with_suffix(".known_hosts")).expanduser()


def _is_of(line: str, name: str) -> bool:
    """Tell whether a line of a file of host keys is of one host alone."""
    try:
        entry = paramiko.hostkeys.HostKeyEntry.from_line(line)
    except paramiko.SSHException:
        return False
    return entry is not None and list(entry.hostnames or []) == [name]
