"""A run directory: what the stages of one run have made, and whether it is still good.

In: a stage's name, the hash of its inputs, and how to make its output. Out: the output, made only
when it is missing or was made from other inputs. Outputs appear under their names when they are
whole; the stamp that says what they were made from is written last, so a killed run repeats at most
the stage that it was in.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from edgeprune.cache import locked
from edgeprune.records import Record, __version__, digest, write_text

# What a run directory was made for (what has none is not one), what it came to, the pruned model,
# the same trained.
REQUEST, OUTCOME, MODEL, RECOVERED = "request.json", "run.json", "model", "recovered"
R = TypeVar("R", bound=Record)


class RunDirectory:
    """The directory of one run.

    Attributes:
        path: The directory, `runs/NAME`.
    """

    def __init__(self, path: Path) -> None:
        """Name the directory; it is made when something is written."""
        self.path = path

    @property
    def is_begun(self) -> bool:
        """Whether a stage was ever finished here."""
        return self._stamp("").is_dir()

    @contextmanager
    def left_if_begun(self) -> Iterator[None]:
        """Take the directory away again where it fails before a stage was finished."""
        try:
            yield
        except BaseException:
            if not self.is_begun:
                shutil.rmtree(self.path, ignore_errors=True)
            raise

    def make(self, stage: str, key: str, name: str, make: Callable[[Path], None]) -> Path:
        """Return a stage's output, a file or a directory, made by `make` when it is out of date.

        Args:
            stage: Name of the stage.
            key: Hash of its inputs.
            name: Path of the output within the run directory.
            make: Writes the output to the (free) path that it is given.
        """
        output = self.path / name
        if self._is_done(stage, key) and output.exists():
            return output
        part = output.with_name(output.name + ".part")
        _remove(part)
        part.parent.mkdir(parents=True, exist_ok=True)
        make(part)
        self._stamp(stage).unlink(missing_ok=True)
        _remove(output)
        part.rename(output)
        write_text(self._stamp(stage), _versioned(key) + "\n")
        return output

    def record(
        self, stage: str, key: str, name: str, kind: type[R], make: Callable[[], R],
        *, usable: Callable[[R], bool] = lambda _: True,
    ) -> R:
        """Return a stage's output that is a record; one that is not `usable` is made again."""
        if self._is_done(stage, key) and usable(known := kind.read(self.path / name)):
            return known
        self._stamp(stage).unlink(missing_ok=True)
        return kind.read(self.make(stage, key, name, lambda path: make().write(path)))

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Give an empty directory for what is not kept, of a killed run's neither."""
        path = self.path / "scratch"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        try:
            yield path
        finally:
            shutil.rmtree(path)

    def _is_done(self, stage: str, key: str) -> bool:
        stamp = self._stamp(stage)
        return stamp.is_file() and stamp.read_text(encoding="utf-8").strip() == _versioned(key)

    def _stamp(self, stage: str) -> Path:
        return self.path / ".stages" / stage


class SharedDirectory(RunDirectory):
    """What several runs need alike; one makes it, and others wait for it."""

    def __init__(self, path: Path, notify: Callable[[str], None]) -> None:
        """Name the directory; `notify` is told when another run is waited for."""
        super().__init__(path)
        self._notify = notify
        self._is_ours = False  # what is made may need another output first

    def make(self, stage: str, key: str, name: str, make: Callable[[Path], None]) -> Path:
        """See `RunDirectory.make`; nothing is made twice at the same time."""
        with self._locked():
            return super().make(stage, key, name, make)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._is_ours:
            yield
            return
        with locked(self.path, lambda: self._notify(
                "waiting for another run, which scores the same model")):
            self._is_ours = True
            try:
                yield
            finally:
                self._is_ours = False


def _versioned(key: str) -> str:
    return digest(__version__, key)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
