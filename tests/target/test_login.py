"""Logging in over a real sshd: the agent's keys, and the question that is asked at a terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from edgeprune.errors import DeviceError
from edgeprune.target.ssh import SSHTransport
from edgeprune.target.transport import checked
from tests.conftest import cli_argv
from tests.sshd import Server


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run an ssh-agent that holds no key yet."""
    socket = tmp_path / "agent"
    started = subprocess.run(["ssh-agent", "-c", "-a", str(socket)], check=True,
                             capture_output=True, text=True).stdout
    pid = int(started.split("SSH_AGENT_PID ")[1].split(";")[0])
    monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
    yield
    os.kill(pid, signal.SIGTERM)


@pytest.mark.usefixtures("agent")
def test_the_agents_keys_are_tried_where_none_is_named(
    sshd: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # no keys of our own
    target = sshd.target(key=None, ssh_config=tmp_path / "config")
    (tmp_path / "config").write_text("IdentityFile none\n")
    with pytest.raises(DeviceError, match="agent"):
        SSHTransport(target)
    subprocess.run(["ssh-add", "-q", str(sshd.directory / "key")], check=True,
                   stderr=subprocess.DEVNULL)
    way = SSHTransport(target)
    assert checked(way, ["echo", "in"]) == "in\n"
    way.close()


def _answer(argv: list[str], words: str, cwd: Path) -> tuple[int, str]:
    """Run a command at a terminal of its own and type an answer; return status and screen."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.execv(argv[0], argv)  # noqa: S606 - what a user would start
    screen = b""
    with suppress(OSError):  # a terminal's way to say that there is no more
        while block := os.read(terminal, 4096):
            screen += block
            if words and b"[y/N]" in screen:
                os.write(terminal, words.encode() + b"\n")
                words = ""
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), screen.decode()


def test_the_user_is_asked_at_a_terminal(sshd: Server, tmp_path: Path) -> None:
    entries = {"host": "127.0.0.1", "port": sshd.port, "key": str(sshd.directory / "key")}
    (tmp_path / "board.toml").write_text(
        "\n".join(f"{key} = {json.dumps(value)}" for key, value in entries.items()))
    argv = cli_argv("target", "trust", "board", "--targets", str(tmp_path))
    shown = subprocess.run(["ssh-keygen", "-lf", str(sshd.directory / "host.pub")], check=True,
                           capture_output=True, text=True).stdout.split()[1]
    status, screen = _answer(argv, "n", tmp_path)
    assert status != 0
    assert shown in screen
    assert not (tmp_path / "board.known_hosts").exists()
    status, screen = _answer(argv, "y", tmp_path)
    assert status == 0, screen
    assert "trusted:" in screen
    assert "ssh-ed25519" in (tmp_path / "board.known_hosts").read_text()
