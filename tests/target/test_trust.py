"""Which host keys are trusted: the target's own file, else those that ssh knows."""

from __future__ import annotations

from pathlib import Path

import paramiko
import pytest

from edgeprune.errors import DeviceError
from edgeprune.target.route import Route
from edgeprune.target.target import Target
from edgeprune.target.trust import check_replaced, check_shown, known_keys, pin, pinned

KEYS = [paramiko.ECDSAKey.generate() for _ in range(2)]


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target(name="board", host="board.example", file=tmp_path / "board.toml")


@pytest.fixture
def route(tmp_path: Path) -> Route:
    """Give a route to a host that ssh knows by the other key."""
    known = tmp_path / "ssh"
    known.write_text(f"board.example {KEYS[1].get_name()} {KEYS[1].get_base64()}\n")
    return Route("board.example", known_hosts=(known,))


def trusted(target: Target | None, route: Route) -> list[paramiko.PKey]:
    return list((known_keys(target, route).lookup(route.name) or {}).values())


def test_a_pinned_key_is_the_only_one_that_counts(target: Target, route: Route) -> None:
    assert pinned(target, route) is None
    assert trusted(target, route) == [KEYS[1]]
    assert pin(target, route, KEYS[0]) == target.file.with_suffix(".known_hosts")
    assert pinned(target, route) == KEYS[0]
    assert trusted(target, route) == [KEYS[0]]
    assert trusted(None, route) == [KEYS[1]]  # of a hop


def test_a_new_key_takes_the_place_of_the_old_one_alone(target: Target, route: Route) -> None:
    elsewhere = route._replace(port=2022)
    hashed = paramiko.HostKeys.hash_host("board.example")
    own = target.file.with_suffix(".known_hosts")
    own.write_text(f"# mine\n{hashed} {KEYS[1].get_name()} {KEYS[1].get_base64()}\n")
    pin(target, elsewhere, KEYS[0])
    pin(target, route, KEYS[1])
    pin(target, route, KEYS[0])
    assert pinned(target, route) == pinned(target, elsewhere) == KEYS[0]
    lines = own.read_text().splitlines()
    assert len(lines) == 4
    assert "# mine" in lines


def test_an_alias_is_what_the_key_is_kept_under(target: Target, route: Route) -> None:
    named = route._replace(known_as="the-board")
    pin(target, named, KEYS[0])
    assert pinned(target, named) == KEYS[0]
    assert pinned(target, route) is None


def test_what_is_not_expected_is_refused_with_both_fingerprints(target: Target) -> None:
    one, other = KEYS
    check_replaced(target, None, one, replace=False)
    check_replaced(target, other, one, replace=True)
    with pytest.raises(DeviceError) as changed:
        check_replaced(target, other, one, replace=False)
    with pytest.raises(DeviceError) as shown:
        check_shown(target, one, other.fingerprint)
    check_shown(target, one, one.fingerprint)
    for refused in (changed, shown):
        assert one.fingerprint in str(refused.value)
        assert other.fingerprint in str(refused.value)


def test_a_file_that_is_not_there_is_told(target: Target, route: Route) -> None:
    named = target.model_copy(update={"known_hosts": Path("/nothing")})
    with pytest.raises(DeviceError, match=r"/nothing.*known_hosts"):
        known_keys(named, route)
