"""Connections to a target: through hops, to a host whose key is trusted, by the user's keys.

In: a `Target`. Out: an open paramiko client, or a `DeviceError` with the remedy. A host key that is
not known is refused, and so is one that has changed (`edgeprune.target.trust`).
"""

from __future__ import annotations

import getpass
import os
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import paramiko

from edgeprune.errors import ConnectionLost, DeviceError
from edgeprune.target.route import Route, hop_of, route_of
from edgeprune.target.target import Target
from edgeprune.target.trust import changed_key, known_keys
from edgeprune.target.uninterrupted import uninterrupted

PASSPHRASE = "EDGEPRUNE_KEY_PASSPHRASE"  # noqa: S105 - where one may be
_MOST_HOPS = 8
_ALIVE_S, _DEAD_AFTER_MS = 15, 45_000
_UNKNOWN = "not found in known_hosts"  # what paramiko says
_NO_KEY = "No authentication methods available"  # likewise
Ask = Callable[[str], str | None]


class Login(NamedTuple):
    """An open connection.

    Attributes:
        client: To the target.
        hops: Closes it, and the hops that lead to it.
    """

    client: paramiko.SSHClient
    hops: ExitStack


def ask_passphrase(key: str) -> str | None:
    """Return the passphrase of a key, from the terminal, if there is one."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    return getpass.getpass(f"\nPassphrase of {key}: ")


def route_to(target: Target) -> Route:
    """Return how a target is reached.

    Raises:
        UsageError: ssh's configuration is not one.
    """
    route = route_of(target.host or "", port=target.port, user=target.user,
                     config=target.ssh_config)
    return route._replace(keys=(target.key.expanduser(),)) if target.key else route


def log_in(target: Target, ask: Ask) -> Login:
    """Connect to a target.

    Args:
        target: Which.
        ask: Gives the passphrase of a key by its path, where the environment does not
            (`PASSPHRASE`); None when there is none to be had.

    Raises:
        DeviceError: Unreachable, a host key that is not trusted, or no key that opens it.
    """
    with ExitStack() as stack:
        client = _client(target, route_to(target), ask, stack)
        return Login(client, stack.pop_all())


def shown_key(target: Target, ask: Ask) -> tuple[Route, paramiko.PKey]:
    """Return the key that a target's host shows, trusted or not, and where that was.

    Raises:
        DeviceError: Unreachable, or a hop on the way that is not trusted.
    """
    route = route_to(target)
    with ExitStack() as stack:
        try:
            transport = paramiko.Transport(_socket(target, route, ask, stack))
            stack.callback(uninterrupted, transport.close)
            uninterrupted(lambda: transport.start_client(timeout=target.connect_timeout_s))
            return route, transport.get_remote_server_key()
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise refusal(target, route, error) from error


def _client(
    target: Target, route: Route, ask: Ask, stack: ExitStack, depth: int = 0
) -> paramiko.SSHClient:
    """Connect to a host on the way, the target itself included; `stack` closes what was opened."""
    if depth > _MOST_HOPS:
        raise DeviceError(f"target {target.name}: more than {_MOST_HOPS} hops lead to it",
                          got=route.jump, remedy="does ProxyJump in ~/.ssh/config name itself?")
    passphrase = os.environ.get(PASSPHRASE)
    while True:
        with ExitStack() as mine:
            client = paramiko.SSHClient()
            mine.callback(uninterrupted, client.close)
            client.set_missing_host_key_policy(paramiko.RejectPolicy())
            # paramiko looks them up by host and port alone
            name = route._replace(known_as=None).name
            known = known_keys(None if depth else target, route)
            for key in (known.lookup(route.name) or {}).values():
                client.get_host_keys().add(name, key.get_name(), key)
            try:
                way = _socket(target, route, ask, mine, depth)
                # a key that is named is the only one that is tried
                _log_in(client, route, passphrase, way, target.connect_timeout_s,
                        with_agent=depth > 0 or target.key is None)
            except (paramiko.SSHException, OSError, EOFError, ValueError) as error:
                locked = next((key for key in route.keys if _is_locked(key)), None)
                if locked is None or not _is_of_keys(client, error):
                    raise refusal(target, route, error) from error
                if passphrase is not None:
                    raise DeviceError(
                        f"target {target.name}: the passphrase does not open the key",
                        got=str(locked), remedy=f"correct {PASSPHRASE}, or `ssh-add {locked}`",
                    ) from error
                if (passphrase := ask(str(locked))) is None:
                    raise DeviceError(
                        f"target {target.name}: the key is encrypted", got=str(locked),
                        remedy=f"`ssh-add {locked}`, or give its passphrase in {PASSPHRASE}",
                    ) from error
                continue
            stack.enter_context(mine.pop_all())
            return client


def _log_in(
    client: paramiko.SSHClient, route: Route, passphrase: str | None,
    way: paramiko.Channel | socket.socket, limit: float, *, with_agent: bool,
) -> None:
    uninterrupted(lambda: client.connect(
        route.host, port=route.port, username=route.user,
        key_filename=[str(key) for key in route.keys],  # type: ignore[arg-type]
        passphrase=passphrase, allow_agent=with_agent,
        look_for_keys=not route.keys, sock=way,
        timeout=limit, banner_timeout=limit, auth_timeout=limit))
    live = client.get_transport()
    if live is None:
        raise EOFError("closed at once")
    live.set_keepalive(_ALIVE_S)


def _socket(
    target: Target, route: Route, ask: Ask, stack: ExitStack, depth: int = 0
) -> paramiko.Channel | socket.socket:
    """Open what leads to a host: a channel of the hop before it, else a connection."""
    if route.jump is None:
        way = socket.create_connection((route.host, route.port), target.connect_timeout_s)
        stack.callback(way.close)
        # a host that is gone without a word is noticed
        way.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_AFTER_MS)
        return way
    hop = hop_of(route.jump, config=target.ssh_config)
    live = _client(target, hop, ask, stack, depth + 1).get_transport()
    if live is None:
        raise refusal(target, hop, EOFError("closed at once"))
    try:
        return uninterrupted(partial(live.open_channel, "direct-tcpip", (route.host, route.port),
                             ("127.0.0.1", 0), timeout=target.connect_timeout_s))
    except paramiko.SSHException as error:
        raise DeviceError(f"target {target.name}: {hop.where} cannot reach {route.where} ({error})",
                          remedy="is the machine on, and may that host forward?") from error


def _is_of_keys(client: paramiko.SSHClient, error: Exception) -> bool:
    """Tell whether a login failed over the user's keys: the host was reached, and is trusted.

    What paramiko says of a wrong passphrase depends on the kind of key.
    """
    live = client.get_transport()
    return live is not None and live.is_active() and not (
        isinstance(error, paramiko.BadHostKeyException) or _UNKNOWN in str(error))


def _is_locked(key: Path) -> bool:
    try:
        paramiko.PKey.from_path(key)
    except (paramiko.PasswordRequiredException, TypeError):  # cryptography's, without a password
        return True
    except (paramiko.SSHException, OSError, ValueError):
        return False
    return False


def refusal(target: Target, route: Route, error: Exception) -> DeviceError:
    """Say why a connection could not be made, with the remedy."""
    name, where = target.name, route.where
    if isinstance(error, FileNotFoundError):
        return DeviceError(f"target {name}: no such file", got=error.filename,
                           remedy="correct 'key' in the target file")
    if isinstance(error, paramiko.BadHostKeyException):
        return changed_key(target, error.expected_key, error.key)
    if isinstance(error, paramiko.AuthenticationException) or _NO_KEY in str(error):
        tried = ", ".join(str(key) for key in route.keys)
        # trying again may help: a machine that is just starting refuses everybody
        return ConnectionLost(
            f"target {name}: {where} refused the login of user {route.user!r}",
            got=tried if target.key else f"agent, {tried or 'no default key'}",
            remedy="correct 'user' or 'key', or add the public key to the target's "
            "authorized_keys")
    if _UNKNOWN in str(error):
        return DeviceError(
            f"target {name}: the host key of {where} is unknown",
            remedy=f"look at it and trust it: edgeprune target trust {name}")
    if isinstance(error, socket.gaierror):
        return ConnectionLost(f"target {name}: no such host", got=route.host,
                              remedy="correct 'host' in the target file")
    return ConnectionLost(f"target {name}: cannot reach {where} ({error})",
                          remedy="is the machine on, and is sshd listening there?")
