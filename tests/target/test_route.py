"""How a host is reached: what `ssh -G` says of a configuration, and what of that is refused."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprune.errors import UsageError
from edgeprune.target import route
from edgeprune.target.route import Route, hop_of, parse_route, route_of


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Give a configuration with an alias in a file that it includes."""
    (tmp_path / "key").write_text("a key")
    (tmp_path / "known").write_text("")
    (tmp_path / "boards").write_text(
        "Host board\n HostName 192.0.2.7\n Port 2022\n ProxyJump first,my-self@second:2222\n")
    path = tmp_path / "config"
    path.write_text(f"Include {tmp_path / 'boards'}\nMatch host second\n User other\nHost *\n"
                    f" User root\n IdentityFile {tmp_path / 'key'}\n IdentityFile ~/no-such-key\n"
                    f" UserKnownHostsFile {tmp_path / 'known'}\n GlobalKnownHostsFile none\n")
    return path


def test_an_alias_is_what_the_configuration_says(config: Path) -> None:
    found = route_of("board", config=config)
    assert found == Route("192.0.2.7", 2022, "root", (config.parent / "key",),
                          (config.parent / "known",), None, "first,my-self@second:2222")
    assert found.name == "[192.0.2.7]:2022"
    assert found.where == "192.0.2.7:2022"


def test_what_the_target_file_says_counts_more(config: Path) -> None:
    found = route_of("board", port=22, user="me", config=config)
    assert (found.port, found.user, found.name) == (22, "me", "192.0.2.7")


def test_hops_lead_to_each_other(config: Path) -> None:
    second = hop_of("first,my-self@second:2222", config=config)
    assert (second.host, second.port) == ("second", 2222)
    assert (second.user, second.jump) == ("my-self", "first")
    first = hop_of("first", config=config)
    assert (first.host, first.port, first.user, first.jump) == ("first", 22, "root", None)
    assert hop_of("ssh://[2001:db8::1]:23", config=config)[:2] == ("2001:db8::1", 23)
    assert hop_of("second", config=config).user == "other"
    with pytest.raises(UsageError, match="names no host"):
        hop_of("a:b:c")


def test_a_name_is_never_an_option(tmp_path: Path) -> None:
    made = tmp_path / "made"
    with pytest.raises(UsageError, match="ssh cannot tell"):
        route_of(f"-oProxyCommand=touch {made}")
    assert not made.exists()


def test_what_is_no_configuration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config").write_text("Hots board\n")
    with pytest.raises(UsageError, match=r"Bad configuration|bad configuration|terminating"):
        route_of("board", config=tmp_path / "config")
    (tmp_path / "config").write_text("Host board\n ProxyCommand nc %h %p\n")
    with pytest.raises(UsageError, match=r"ProxyCommand.*'nc %h %p'.*ProxyJump"):
        route_of("board", config=tmp_path / "config")


@given(st.lists(st.tuples(
    st.sampled_from(["hostname", "port", "user", "identityfile", "userknownhostsfile", "proxyjump",
                     "proxycommand", "hostkeyalias", ""]),
    st.one_of(st.text(), st.integers().map(str), st.just("~nobody/key"), st.just("none")))))
def test_any_answer_is_read_or_refused(lines: list[tuple[str, str]]) -> None:
    with suppress(UsageError):
        assert parse_route("\n".join(" ".join(line) for line in lines)).port >= 0


@settings(deadline=None, max_examples=20)  # each asks ssh
@given(st.text())
def test_any_hop_is_read_or_refused(jump: str) -> None:
    with suppress(UsageError):
        hop_of(jump, config=Path("/dev/null"))


def test_a_configuration_that_never_answers_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text('Match exec "sleep 3"\n User me\n')
    monkeypatch.setattr(route, "ANSWER_S", 0.2)
    with pytest.raises(UsageError, match="Match exec"):
        route_of("board", config=tmp_path / "config")
