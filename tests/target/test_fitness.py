"""What keeps a target from being used, each with its remedy, before anything is sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune.errors import DeviceError
from edgeprune.target.fitness import check_ram, check_usable, problems
from edgeprune.target.measure import bench_file
from edgeprune.target.measurement import Workload
from edgeprune.target.probe import facts_of
from edgeprune.target.session import Device, open_device
from edgeprune.target.target import Target
from edgeprune.target.transport import Completed, FakeTransport, check_room
from tests.cli.test_app import assert_one_line
from tests.conftest import Cli
from tests.target.test_probe import PI5, X86

BOARD = Target(name="board", host="board")


@pytest.mark.parametrize(("answers", "named"), [
    ({"python": "3.8.10 2.31 12345678 1 0"}, r"python is too old.*'3\.8\.10'.*3\.9"),
    ({"python": "3.11.2 2.27 12345678 1 0"}, r"glibc 2\.28.*'glibc 2\.27'.*Debian 10"),
    ({"python": "3.11.2 - 12345678 1 0"}, r"glibc 2\.28.*no glibc"),
    ({"uname": X86["uname"].replace("x86_64", "riscv64")}, r"64-bit ARM.*'riscv64, here"),
    ({"python": "3.11.2 2.36 12345678 0 0"}, r"cannot be written.*work_directory"),
    ({"python": "3.11.2 2.36 12345678 1 -200000"}, r"clock is wrong.*'-56 h'.*timedatectl"),
])
def test_each_is_told_with_its_remedy(answers: dict[str, str], named: str) -> None:
    facts = facts_of({**PI5, "python": "3.11.2 2.36 12345678 1 0", **answers})
    (problem,) = problems(BOARD, facts)
    with pytest.raises(DeviceError, match=named) as refused:
        check_usable(BOARD, facts)
    assert str(refused.value) == str(problem)
    assert problem.remedy


def test_a_usual_board_has_none() -> None:
    assert list(problems(BOARD, facts_of(PI5, now=1000))) == []
    # of this machine the installed packages are used, whatever it is
    assert list(problems(Target(name="local"), facts_of({**PI5, **X86}, now=1000))) == []


def test_several_are_told_together() -> None:
    facts = facts_of({**PI5, "uname": X86["uname"], "python": "3.8.1 2.20 1 0 999999999"})
    assert len(list(problems(BOARD, facts))) == 4


def test_a_model_that_is_larger_than_the_ram_to_spare_is_refused() -> None:
    facts = facts_of(PI5)
    check_ram(BOARD, facts, 7500000 * 1024)
    with pytest.raises(DeviceError, match=r"not enough RAM for a model of 8000 MiB.*smaller"):
        check_ram(BOARD, facts, 8000 * 2**20)


@pytest.mark.parametrize("answer", ["", "many 4096", "1 2 3"])
def test_room_that_cannot_be_read_is_told(answer: str) -> None:
    with pytest.raises(DeviceError, match="cannot be read"):
        check_room(FakeTransport({"stat": Completed(0, answer)}), "board", "work", 1)


def test_there_must_be_room_for_what_is_sent() -> None:
    disk = FakeTransport({"stat": Completed(0, "25600 4096\n")})  # 100 MiB
    check_room(disk, "board", "work", 60 * 2**20)
    with pytest.raises(DeviceError, match=r"not enough disk for 90 MiB.*'100 MiB free'.*work"):
        check_room(disk, "board", "work", 90 * 2**20)


def test_nothing_is_sent_to_a_target_that_cannot_be_used(gguf_file: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    with open_device(Target(name="here", work_directory=str(work))) as device:
        usual = device.facts
        for change in ({"clock_ahead_s": 1e6}, {"writable": False}, {"available_bytes": 1000},
                       {"python": "3.7.3"}):
            device.facts = usual.model_copy(update=change)
            with pytest.raises(DeviceError):
                bench_file(device, gguf_file, Workload(n_prompt=4, n_new=2))
            assert not work.exists()
        device.facts = usual
        assert isinstance(device, Device)
        device.setup()
        assert work.is_dir()


def test_check_tells_whether_there_is_room_for_a_model(
    cli: Cli, gguf_file: Path, tmp_path: Path
) -> None:
    check = ("target", "check", "local", "--artifact")
    assert cli(*check, str(gguf_file)).returncode == 0
    huge = tmp_path / "huge.gguf"
    huge.write_bytes(gguf_file.read_bytes()[:4096])
    with huge.open("r+b") as file:
        file.truncate(2**43)  # a hole
    assert_one_line(cli(*check, str(huge)), 5, "not enough RAM", "smaller model")
    assert_one_line(cli(*check, str(tmp_path)), 6, "neither a GGUF file")
