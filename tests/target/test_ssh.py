"""SSH over a real sshd on this machine: transfers that go on where they broke, and refusals."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from edgeprune.errors import ConnectionLost, DeviceError
from edgeprune.records import file_digest
from edgeprune.target.persistence import PersistentTransport
from edgeprune.target.ssh import CHUNK_BYTES, SSHTransport
from edgeprune.target.transport import checked
from tests.sshd import Relay, Server

SIZE = 640 * CHUNK_BYTES
INTERRUPTS = 60


@pytest.fixture
def way(sshd: Server, relay: Relay) -> Iterator[SSHTransport]:
    """Give a transport through the relay."""
    transport = SSHTransport(sshd.target(port=relay.port))
    yield transport
    transport.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "model").write_bytes(os.urandom(SIZE))
    return tmp_path / "model"


def _part(remote: Path, file: Path) -> Path:
    return remote.with_name(f"{remote.name}.{file_digest(file)[:16]}.part")


def test_a_file_arrives_whole(way: SSHTransport, file: Path, tmp_path: Path) -> None:
    remote, seen = tmp_path / "with blank 'and quote", list[int]()
    way.put(file, str(remote), lambda done, _: seen.append(done))
    assert remote.read_bytes() == file.read_bytes()
    assert seen[-1] == SIZE
    assert seen == sorted(seen)
    assert not _part(remote, file).exists()


def test_an_upload_goes_on_where_it_broke(
    way: SSHTransport, relay: Relay, file: Path, tmp_path: Path
) -> None:
    remote = tmp_path / "there"
    relay.cut_after(SIZE // 2)
    with pytest.raises(ConnectionLost):
        way.put(file, str(remote))
    assert not remote.exists()
    arrived = _part(remote, file).stat().st_size
    assert 0 < arrived < SIZE
    seen = list[int]()
    way.put(file, str(remote), lambda done, _: seen.append(done))
    assert remote.read_bytes() == file.read_bytes()
    assert seen[0] > arrived  # what had arrived was not sent again
    assert seen == sorted(seen)  # nor was all of it, as what is damaged is


@pytest.mark.parametrize("there", [SIZE // 3, SIZE + 10])
def test_what_is_there_and_wrong_is_sent_anew(
    way: SSHTransport, file: Path, tmp_path: Path, there: int
) -> None:
    """A machine that lost its power may keep a file's size and not its bytes."""
    remote = tmp_path / "there"
    _part(remote, file).write_bytes(b"\0" * there)
    way.put(file, str(remote))
    assert remote.read_bytes() == file.read_bytes()


def test_a_directory_that_cannot_be_written_is_no_lost_connection(
    way: SSHTransport, file: Path
) -> None:
    with pytest.raises(DeviceError, match="may the user write") as refused:
        way.put(file, "/proc/no")
    assert not isinstance(refused.value, ConnectionLost)


def test_an_empty_file_arrives(way: SSHTransport, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    way.put(tmp_path / "empty", str(tmp_path / "there"))
    assert (tmp_path / "there").read_bytes() == b""


def test_a_small_file_that_is_not_what_was_sent_is_told(sshd: Server, tmp_path: Path) -> None:
    """The server's disk or memory is faulty: it keeps other bytes than it got."""
    (tmp_path / "small").write_bytes(b"all right")
    wrapper = sshd.directory / "wrapper"
    usual, way = wrapper.read_text(), SSHTransport(sshd.target())
    faulty = ("import os\nwhile block := os.read(0, 65536):\n"
              ' os.write(1, block.replace(b"all right", b"all wrong"))')
    wrapper.write_text(f"#!/bin/sh\n{sys.executable} -c '{faulty}' | $SSH_ORIGINAL_COMMAND\n")
    try:
        with pytest.raises(DeviceError, match="arrives damaged") as told:
            way.put(tmp_path / "small", str(tmp_path / "there"))
    finally:
        wrapper.write_text(usual)
        way.close()
    assert not isinstance(told.value, ConnectionLost)
    assert not (tmp_path / "there").exists()


def test_what_prints_without_end_is_refused(sshd: Server) -> None:
    with_end = SSHTransport(sshd.target())
    try:
        with pytest.raises(DeviceError, match="without end"):
            with_end.run(["yes"])
        assert checked(with_end, ["echo", "on"]) == "on\n"
    finally:
        with_end.close()


def test_an_answer_that_is_too_large_is_not_fetched(way: SSHTransport, file: Path) -> None:
    with pytest.raises(DeviceError, match="too large"):
        way.get(str(file), file.with_name("copy"), SIZE - 1)
    assert not file.with_name("copy").exists()
    way.get(str(file), file.with_name("copy"), SIZE)
    assert file.with_name("copy").read_bytes() == file.read_bytes()


def test_a_download_that_is_cut_off_leaves_no_file(
    way: SSHTransport, relay: Relay, file: Path, tmp_path: Path
) -> None:
    relay.cut_after(SIZE // 2, is_up=False)
    with pytest.raises(ConnectionLost):
        way.get(str(file), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_persistence_brings_everything_through(
    way: SSHTransport, relay: Relay, file: Path, tmp_path: Path
) -> None:
    said = list[str]()
    persistent = PersistentTransport(way, said.append)
    relay.cut_after(SIZE // 2)
    persistent.put(file, str(tmp_path / "there"))
    assert (tmp_path / "there").read_bytes() == file.read_bytes()
    threading.Timer(0.5, relay.cut).start()
    assert checked(persistent, ["sh", "-c", "sleep 1; echo done"]) == "done\n"
    relay.cut_after(SIZE // 2, is_up=False)
    persistent.get(str(tmp_path / "there"), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    assert relay.cuts == 3
    assert any("trying again" in line for line in said)


def test_a_server_that_is_restarted_is_found_again(sshd: Server) -> None:
    persistent = PersistentTransport(SSHTransport(sshd.target()), lambda _: None)
    try:
        sshd.stop()
        threading.Timer(2, sshd.start).start()
        assert checked(persistent, ["echo", "on"]) == "on\n"
    finally:
        persistent.close()


def test_patience_ends(sshd: Server) -> None:
    waits = list[float]()
    with Relay(sshd.port) as relay:
        sshd.trusts(relay.port)
        way = SSHTransport(sshd.target(port=relay.port))
        persistent = PersistentTransport(way, lambda _: None, patience_s=10, sleep=waits.append)
    # nobody listens there any more
    with pytest.raises(ConnectionLost, match=r"cannot reach|was lost"):
        persistent.run(["true"])
    assert waits == [0.5, 1, 2, 4, 8]
    way.close()


def test_another_host_at_the_same_place_is_never_tried_again(sshd: Server, tmp_path: Path) -> None:
    sshd_file = tmp_path / "known"
    key = (sshd.directory / "key.pub").read_text()  # any other key
    way = SSHTransport(sshd.target())
    sshd_file.write_text(f"[127.0.0.1]:{sshd.port} {key}")
    way._target = sshd.target(known_hosts=sshd_file)
    way.close()
    waits = list[float]()
    persistent = PersistentTransport(way, lambda _: None, patience_s=10, sleep=waits.append)
    with pytest.raises(DeviceError, match="has changed"):
        persistent.run(["true"])
    assert waits == []


def test_ctrl_c_never_tears_the_connection(sshd: Server) -> None:
    """Interrupt commands at any moment; those that follow are answered.

    With paramiko called from the main thread this failed after some fifty interrupts.
    """
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    way, moment = SSHTransport(sshd.target()), random.Random(0)  # noqa: S311
    try:
        for _ in range(INTERRUPTS):
            with suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, moment.uniform(0.001, 0.05))
                way.run(["sleep", "0.1"])
            assert way.run(["true"], timeout_s=20).status == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        way.close()
