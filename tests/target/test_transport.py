"""The local and the fake transport do the same; SSH is tested on the ARM machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune.errors import DeviceError
from edgeprune.target.transport import (
    Completed,
    FakeTransport,
    LocalTransport,
    Transport,
    checked,
)


def test_a_command_gives_status_and_both_streams() -> None:
    done = LocalTransport().run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert done == Completed(3, "out\n", "err\n")
    assert LocalTransport().run(["no-such-program"]).status == 127


def test_arguments_are_never_read_by_a_shell() -> None:
    nasty = "$(touch gone) ; `id` 'quoted' \"twice\" *"
    assert LocalTransport().run(["printf", "%s", nasty]).stdout == nasty


def test_a_command_that_does_not_end_is_given_up() -> None:
    with pytest.raises(DeviceError, match="timed out"):
        LocalTransport().run(["sleep", "5"], timeout_s=0.1)


def test_checked_says_what_failed() -> None:
    with pytest.raises(DeviceError, match=r"status 4 \(last words\)"):
        checked(LocalTransport(), ["sh", "-c", "echo last words >&2; exit 4"])


@pytest.mark.parametrize("transport", [LocalTransport(), FakeTransport({})])
def test_files_go_there_and_back(transport: Transport, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    remote, seen = str(tmp_path / "b"), list[tuple[int, int]]()
    transport.put(tmp_path / "a", remote, lambda *progress: seen.append(progress))
    transport.put(tmp_path / "a", remote)  # again, over what is there
    transport.get(remote, tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == b"content"
    assert seen == [(7, 7)]
    with pytest.raises(DeviceError, match="nothing"):
        transport.get(str(tmp_path / "nothing"), tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_what_was_put_does_not_follow_the_original(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    LocalTransport().put(tmp_path / "a", str(tmp_path / "b"))
    (tmp_path / "new").write_text("new")
    (tmp_path / "new").replace(tmp_path / "a")  # as edgeprune replaces files
    assert (tmp_path / "b").read_text() == "old"


def test_the_fake_answers_from_its_table() -> None:
    fake = FakeTransport({("uname", "-m"): Completed(0, "aarch64\n"), "ls": Completed(0, "x\n")})
    assert checked(fake, ["uname", "-m"]) == "aarch64\n"
    assert checked(fake, ["ls", "anything"]) == "x\n"
    assert fake.run(["nproc"]).status == 127
    assert fake.commands == [("uname", "-m"), ("ls", "anything"), ("nproc",)]
