"""Logging in over SSH: keys, known and unknown hosts, a hop, connections that break."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeprune.errors import DeviceError
from edgeprune.target.login import PASSPHRASE
from edgeprune.target.ssh import SSHTransport
from edgeprune.target.target import Target, load_target
from edgeprune.target.transport import checked
from tests.cli.test_app import assert_one_line
from tests.conftest import Cli

pytestmark = pytest.mark.debian


@pytest.fixture(scope="module")
def ssh(target: Target) -> Iterator[SSHTransport]:
    transport = SSHTransport(target)
    yield transport
    transport.close()


def test_commands_keep_arguments_streams_and_status(ssh: SSHTransport) -> None:
    nasty = "$(touch gone) ; `id` 'quoted' \"twice\" * ü"
    assert ssh.run(["printf", "%s", nasty]).stdout == nasty
    done = ssh.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (done.status, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert ssh.run(["no-such-program"]).status == 127
    many = checked(ssh, ["seq", "200000"]).splitlines()
    assert (len(many), many[-1]) == (200000, "200000")


def test_a_command_that_does_not_end_is_given_up(ssh: SSHTransport) -> None:
    with pytest.raises(DeviceError, match="no answer"):
        ssh.run(["sleep", "60"], timeout_s=2)
    assert ssh.run(["true"]).status == 0


def test_files_go_there_and_back_whole(ssh: SSHTransport, tmp_path: Path) -> None:
    data, seen = os.urandom(3_000_001), list[int]()
    (tmp_path / "a").write_bytes(data)
    ssh.put(tmp_path / "a", "with blank 'and quote", lambda done, _: seen.append(done))
    ssh.put(tmp_path / "a", "with blank 'and quote")  # over what is there
    ssh.get("with blank 'and quote", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == data
    assert seen[-1] == len(data)
    assert ssh.run(["rm", "with blank 'and quote"]).status == 0
    with pytest.raises(DeviceError, match="nothing"):
        ssh.get("nothing", tmp_path / "c")
    with pytest.raises(DeviceError, match="disk"):
        ssh.put(tmp_path / "a", "/proc/no")


def test_a_lost_connection_is_made_again(ssh: SSHTransport) -> None:
    with pytest.raises(DeviceError, match="lost"):
        # the parent of our command is the sshd process of this connection
        ssh.run(["sh", "-c", "kill $PPID; sleep 60"], timeout_s=50)
    assert ssh.run(["true"]).status == 0


def _targets_with(directory: Path, target: Target, **changes: object) -> tuple[str, str]:
    entries = {"host": target.host, "port": target.port, "user": target.user,
               "key": str(target.key), "known_hosts": str(target.known_hosts), **changes}
    lines = [f"{key} = {json.dumps(value)}" for key, value in entries.items() if value is not None]
    (directory / "changed.toml").write_text("\n".join(lines))
    return "--targets", str(directory)


def _new_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def test_a_wrong_key_exits_5(cli: Cli, target: Target, tmp_path: Path) -> None:
    targets = _targets_with(tmp_path, target, key=str(_new_key(tmp_path / "other")))
    assert_one_line(cli("target", "check", "changed", *targets), 5, "refused", "authorized_keys")


def test_an_unknown_host_key_exits_5(cli: Cli, target: Target, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    targets = _targets_with(tmp_path, target, known_hosts=str(tmp_path / "empty"))
    assert_one_line(cli("target", "check", "changed", *targets), 5, "unknown",
                    "edgeprune target trust changed")


def test_a_host_key_is_looked_at_and_trusted(
    cli: Cli, target: Target, ssh: SSHTransport, tmp_path: Path
) -> None:
    """Without a file of its own the target's key is kept beside the target's file."""
    targets = _targets_with(tmp_path, target, known_hosts=None)
    trust = ("target", "trust", "changed", *targets)
    assert_one_line(cli("target", "check", "changed", *targets), 5, "unknown")
    other = _new_key(tmp_path / "host").with_suffix(".pub").read_text()
    told = checked(ssh, ["ssh-keygen", "-lf", "/etc/ssh/ssh_host_ed25519_key.pub"]).split()[1]
    assert_one_line(cli(*trust), 2, f"--fingerprint {told}")  # nobody can be asked
    assert_one_line(cli(*trust, "--fingerprint", "SHA256:other"), 5, told, "SHA256:other")
    assert not (tmp_path / "changed.known_hosts").exists()
    done = cli(*trust, "--fingerprint", told)
    assert done.returncode == 0, done.stderr
    assert f"ssh-ed25519 {told}" in done.stdout
    assert cli("target", "check", "changed", *targets).returncode == 0
    assert "trusted already" in cli(*trust).stdout

    # another machine at the same address
    pinned = tmp_path / "changed.known_hosts"
    pinned.write_text("board.example ssh-ed25519 AAAA\n"
                      f"[{target.host}]:{target.port} {other}")
    mine = subprocess.run(["ssh-keygen", "-lf", str(tmp_path / "host.pub")], check=True,
                          capture_output=True, text=True).stdout.split()[1]
    for command in (("target", "check", "changed", *targets), (*trust, "--fingerprint", told)):
        assert_one_line(cli(*command), 5, "has changed", told, mine, "--replace")
    assert cli(*trust, "--fingerprint", told, "--replace").returncode == 0
    assert cli("target", "check", "changed", *targets).returncode == 0
    assert "board.example" in pinned.read_text()


def test_sshs_own_configuration_leads_to_a_machine_behind_a_hop(
    cli: Cli, target: Target, tmp_path: Path
) -> None:
    known = tmp_path / "known"
    assert target.known_hosts is not None
    key = target.known_hosts.read_text().splitlines()[0].split(" ", 1)[1]
    inner, hop = f"[127.0.0.1]:{target.port} {key}\n", f"[localhost]:{target.port} {key}\n"
    known.write_text(inner + hop)
    (tmp_path / "hops").write_text(
        "Host hop\n HostName localhost\nHost inner\n HostName 127.0.0.1\n ProxyJump hop\n")
    config = tmp_path / "config"
    config.write_text(f"Include {tmp_path / 'hops'}\nHost *\n User {target.user}\n"
                      f" Port {target.port}\n IdentityFile {target.key}\n"
                      f" UserKnownHostsFile {known}\n")
    (tmp_path / "inner.toml").write_text(f'host = "inner"\nssh_config = "{config}"')
    done = cli("target", "check", "inner", "--targets", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "Linux" in done.stdout
    known.write_text(inner)  # the hop is not known any more
    assert_one_line(cli("target", "check", "inner", "--targets", str(tmp_path)), 5,
                    "localhost", "unknown")


def test_a_key_may_be_encrypted(
    cli: Cli, target: Target, ssh: SSHTransport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = tmp_path / "locked"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "open, sesame", "-f", str(locked)],
                   check=True)
    public = locked.with_suffix(".pub").read_text().strip()
    authorized = checked(ssh, ["cat", ".ssh/authorized_keys"])
    (tmp_path / "both").write_text(f"{authorized.rstrip()}\n{public}\n")
    ssh.put(tmp_path / "both", ".ssh/authorized_keys")
    checked(ssh, ["chmod", "600", ".ssh/authorized_keys"])
    check = ("target", "check", "changed", *_targets_with(tmp_path, target, key=str(locked)))
    try:
        assert_one_line(cli(*check), 5, "encrypted", "ssh-add", PASSPHRASE)
        monkeypatch.setenv(PASSPHRASE, "close, sesame")
        assert_one_line(cli(*check), 5, "does not open the key")
        monkeypatch.setenv(PASSPHRASE, "open, sesame")
        assert cli(*check).returncode == 0
        monkeypatch.delenv(PASSPHRASE)
        asked = list[str]()

        def ask(key: str) -> str:
            asked.append(key)
            return "open, sesame"

        transport = SSHTransport(load_target("changed", tmp_path), ask)
        with pytest.raises(DeviceError, match="lost"):
            transport.run(["sh", "-c", "kill $PPID; sleep 60"], timeout_s=50)
        assert transport.run(["true"]).status == 0
        transport.close()
        assert asked == [str(locked)]
    finally:
        (tmp_path / "one").write_text(authorized)
        ssh.put(tmp_path / "one", ".ssh/authorized_keys")
        checked(ssh, ["chmod", "600", ".ssh/authorized_keys"])


def test_a_directory_that_cannot_be_written_exits_5(
    cli: Cli, target: Target, tmp_path: Path
) -> None:
    targets = _targets_with(tmp_path, target, work_directory="/proc/edgeprune")
    assert_one_line(cli("target", "setup", "changed", *targets), 5, "cannot be written",
                    "/proc/edgeprune", "work_directory")
