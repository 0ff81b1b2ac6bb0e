"""Target files: what is read, what is refused and with which remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.errors import EdgePruneError, UsageError
from edgeprune.target.target import list_targets, load_target
from tests.conftest import ROOT

GOOD = 'host = "board.example"\nuser = "me"\nport = 2022\nthreads = 4\n'


def test_local_is_built_in(tmp_path: Path) -> None:
    assert load_target("local", tmp_path).is_local


def test_a_file_is_read_by_name_and_by_path(tmp_path: Path) -> None:
    (tmp_path / "board.toml").write_text(GOOD)
    target = load_target("board", tmp_path)
    assert (target.name, target.host, target.port, target.threads) == (
        "board", "board.example", 2022, 4)
    assert load_target(str(tmp_path / "board.toml"), Path("elsewhere")) == target
    assert [t.name for t in list_targets(tmp_path)] == ["local", "board"]


def test_the_shipped_targets_are_valid() -> None:
    assert {t.name for t in list_targets(ROOT / "targets")} >= {"local", "qemu-arm64"}


@pytest.mark.parametrize(("text", "named"), [
    ('hots = "x"', "'host'"),
    ('host = "x"\nprot = 22', "'port'"),
    ('user = "me"', "'host' is missing"),
    ('host = ""', "host"),
    ('host = "-oProxyCommand=reboot"', "host"),
    ('host = "x"\nuser = "-v"', "user"),
    ('host = "x"\nport = "ssh"', "port"),
    ('host = "x"\nport = 70000', "port"),
    ('host = "x"\nthreads = 0', "threads"),
    ("host = ", "not a TOML file"),
])
def test_a_bad_file_is_refused_with_what_is_wrong(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "board.toml").write_text(text)
    with pytest.raises(UsageError, match=named) as refused:
        load_target("board", tmp_path)
    assert "board.toml" in str(refused.value)


def test_an_unknown_name_is_refused_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "jetson.toml").write_text(GOOD)
    with pytest.raises(UsageError, match="'jetson'"):
        load_target("jetsn", tmp_path)


@given(st.binary(max_size=200))
def test_any_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_bytes(data)
    try:
        load_target(str(path), path.parent)
    except EdgePruneError:
        return
