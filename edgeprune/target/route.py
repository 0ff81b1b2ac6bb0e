"""The route to a target, as OpenSSH's own configuration gives it.

In: a host as the user named it. Out: a `Route`. `ssh -G` reads the configuration, so that aliases,
`Include`, `Match` and defaults mean what they mean to `ssh`; nothing is connected to.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from edgeprune.errors import UsageError

_HOP = re.compile(r"(?:ssh://)?(?:(?P<user>[^@\s\0]+)@)?"
                  r"(?:\[(?P<v6>[\w:.%]+)\]|(?P<host>[\w.%-]+))(?::(?P<port>[0-9]{1,5}))?/?")
_PORT = re.compile(r"[0-9]{1,5}")
ANSWER_S = 60  # of `ssh -G`: `Match exec` may run programs


class Route(NamedTuple):
    """How to reach a host.

    Attributes:
        host: Name or address that is connected to.
        port: TCP port of its sshd.
        user: To log in as; None is who we are here.
        keys: Private keys to try; those that exist.
        known_hosts: Files of host keys; those that exist.
        known_as: Name under which they know it; None is host and port.
        jump: The hop that is connected to first, as ProxyJump names it.
    """

    host: str
    port: int = 22
    user: str | None = None
    keys: tuple[Path, ...] = ()
    known_hosts: tuple[Path, ...] = ()
    known_as: str | None = None
    jump: str | None = None

    @property
    def name(self) -> str:
        """The name by which files of host keys know it."""
        return self.known_as or (self.host if self.port == 22 else f"[{self.host}]:{self.port}")

    @property
    def where(self) -> str:
        """Host and port, for messages."""
        return f"{self.host}:{self.port}"


def route_of(
    host: str, *, port: int | None = None, user: str | None = None, config: Path | None = None
) -> Route:
    """Return how to reach a host: what is not given is as `~/.ssh/config` says.

    Without an `ssh` program here there is no configuration to be read.

    Args:
        host: A name, an address or an alias in the configuration.
        port: Instead of the configuration's.
        user: Likewise.
        config: The configuration; `ssh`'s own files when None.

    Raises:
        UsageError: The configuration is not one, or wants what edgeprune cannot do.
    """
    if (ssh := shutil.which("ssh")) is None:
        return Route(host, port or 22, user, known_hosts=_existing(["~/.ssh/known_hosts"]))
    options = [*(["-F", str(config.expanduser())] if config else []),
               *(["-p", str(port)] if port else []), *(["-l", user] if user else [])]
    try:
        done = subprocess.run([ssh, "-T", "-G", *options, "--", host], capture_output=True,
                              text=True, errors="replace", timeout=ANSWER_S, check=False,
                              stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"ssh does not tell how to reach {host!r} ({error})",
                         remedy="does `Match exec` in ~/.ssh/config wait for something?") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise UsageError(f"ssh cannot tell how to reach {host!r} ({said[0]})",
                         remedy="correct 'host' in the target file, or ~/.ssh/config")
    return parse_route(done.stdout)


def parse_route(text: str) -> Route:
    """Read what `ssh -G` printed. Pure but for looking which files exist.

    Raises:
        UsageError: It wants what edgeprune cannot do, or is no such text.
    """
    found = dict[str, list[str]]()
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        found.setdefault(key, []).append(value)

    def one(key: str) -> str | None:
        value = found.get(key, ["none"])[0]
        return None if value == "none" else value

    host, port = one("hostname"), one("port") or "22"
    if host is None or not _PORT.fullmatch(port):
        raise UsageError("ssh's answer cannot be read", got=text[:80])
    if one("proxycommand"):
        raise UsageError("a ProxyCommand leads to the target, which edgeprune does not run",
                         got=one("proxycommand"), remedy="name the hop with ProxyJump")
    files = " ".join(found.get("userknownhostsfile", []) + found.get("globalknownhostsfile", []))
    return Route(host, int(port), one("user"), _existing(found.get("identityfile", [])),
                 _existing(files.split()), one("hostkeyalias"), one("proxyjump"))


def hop_of(jump: str, *, config: Path | None = None) -> Route:
    """Return how to reach the last hop that ProxyJump names; the earlier ones lead to it.

    Args:
        jump: `[user@]host[:port]`, or several, joined by commas.
        config: As for `route_of`.

    Raises:
        UsageError: It names no host.
    """
    *earlier, last = jump.split(",")
    match = _HOP.fullmatch(last.strip())
    if match is None:
        raise UsageError("ProxyJump names no host", got=last, remedy="[user@]host[:port]")
    port = match["port"]
    route = route_of(match["v6"] or match["host"], port=int(port) if port else None,
                     user=match["user"], config=config)
    return route._replace(jump=",".join(earlier)) if earlier else route


def _existing(files: list[str]) -> tuple[Path, ...]:
    """Return which of some files there are."""
    found = []
    for file in files:
        with suppress(RuntimeError):  # a home directory of nobody
            found.append(Path(file).expanduser())
    return tuple(path for path in found if path.is_file())
