"""Run directories: outputs are made once, and again when their inputs change."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from edgeprune.records import Record, write_text
from edgeprune.rundir import RunDirectory, SharedDirectory


class Number(Record):
    """A record for these tests."""

    value: int


class Maker:
    """Writes numbers and counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, path: Path) -> None:
        """Write the number of this call."""
        self.calls += 1
        path.write_text(str(self.calls))

    def record(self) -> Number:
        """Return the number of this call."""
        self.calls += 1
        return Number(value=self.calls)


def test_a_finished_stage_is_not_run_again(tmp_path: Path) -> None:
    make = Maker()
    for _ in range(2):
        assert RunDirectory(tmp_path).make("s", "key", "out", make).read_text() == "1"
    assert make.calls == 1


def test_other_inputs_run_it_again(tmp_path: Path) -> None:
    make, run = Maker(), RunDirectory(tmp_path)
    run.make("s", "key", "out", make)
    assert run.make("s", "other", "out", make).read_text() == "2"
    assert run.make("s", "key", "out", make).read_text() == "3"


def test_what_another_version_has_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, run = Maker(), RunDirectory(tmp_path)
    run.make("s", "key", "out", make)
    monkeypatch.setattr("edgeprune.rundir.__version__", "0.0.9")
    assert run.make("s", "key", "out", make).read_text() == "2"


def test_a_deleted_output_is_made_again(tmp_path: Path) -> None:
    make, run = Maker(), RunDirectory(tmp_path)
    run.make("s", "key", "out", make).unlink()
    assert run.make("s", "key", "out", make).exists()


def test_a_stage_that_failed_leaves_what_was_there(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.make("s", "key", "out", Maker())

    def fail(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        run.make("s", "other", "out", fail)
    assert (tmp_path / "out").read_text() == "1"
    assert run.make("s", "key", "out", fail).read_text() == "1"


def test_directories_are_outputs_too(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)

    def make(path: Path) -> None:
        path.mkdir()
        (path / "file").write_text("x")

    run.make("s", "key", "out", make)
    run.make("s", "other", "out", make)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["file"]


def test_a_record_that_is_not_usable_is_made_again(tmp_path: Path) -> None:
    make, run = Maker(), RunDirectory(tmp_path)

    def record() -> Number:
        return run.record("s", "key", "n.json", Number, make.record,
                          usable=lambda number: number.value > 1)

    assert [record().value for _ in range(3)] == [1, 2, 2]


def test_what_runs_share_may_need_something_else_that_they_share(tmp_path: Path) -> None:
    shared = SharedDirectory(tmp_path, lambda _: None)

    def sum_up(path: Path) -> None:
        part = shared.make("part", "key", "part", lambda path: write_text(path, "2"))
        write_text(path, part.read_text() * 2)

    assert shared.make("whole", "key", "whole", sum_up).read_text() == "22"


def test_what_runs_share_is_made_by_one_of_them(tmp_path: Path) -> None:
    began, told, make = threading.Event(), list[str](), Maker()
    may_end = threading.Event()

    def slowly(path: Path) -> None:
        began.set()
        assert may_end.wait(30)
        make(path)

    def notify(text: str) -> None:
        told.append(text)
        may_end.set()

    first = threading.Thread(target=lambda: SharedDirectory(tmp_path, told.append).make(
        "s", "key", "out", slowly))
    first.start()
    assert began.wait(30)
    other = SharedDirectory(tmp_path, notify).make("s", "key", "out", make)
    first.join()
    assert other.read_text() == "1"
    assert make.calls == 1
    assert told == ["waiting for another run, which scores the same model"]
