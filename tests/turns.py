"""Who runs when: what measures the machine runs alone, all else side by side.

`make test` runs the tests in two processes (pytest-xdist). Tests of one file stay together, so that
what its fixtures make is made once, and so do files that run jobs on the target `local`, which does
one at a time; the slow files come first. A test with the mark `measures`
needs a quiet machine: it waits until the other process has ended its test, which begins no other
before this one has ended. In one process (`pytest` alone) nothing here matters.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

# By what they take, longest first.
SLOW = ("tests/arm", "tests/test_pipeline.py", "tests/test_formats.py", "tests/test_cli.py",
        "tests/recovery", "tests/debian/test_deploy.py", "tests/test_strategies.py")
LOCAL = ("tests/test_pipeline.py", "tests/test_formats.py", "tests/test_cli.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow files first."""
    items.sort(key=lambda item: next(
        (rank for rank, place in enumerate(SLOW) if item.nodeid.startswith(place)), len(SLOW)))


class _ByFile(LoadFileScheduling):  # type: ignore[misc]
    def _split_scope(self, nodeid: str) -> str:
        return "local" if nodeid.startswith(LOCAL) else str(super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep tests of a file, and files of the target `local`, in one process."""
    return _ByFile(config, log)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Wait for this test's turn, before its time limit begins to run."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    if run is None:
        return (yield)
    with _turn(run, alone=item.get_closest_marker("measures") is not None):
        return (yield)


@contextmanager
def _turn(run: str, *, alone: bool) -> Iterator[None]:
    """Be in the room, with others or alone; who wants to be alone lets nobody in before it."""
    door, room = (Path(tempfile.gettempdir()) / f"edgeprune-tests-{run}-{name}"
                  for name in ("door", "room"))
    with ExitStack() as stack:
        inside = stack.enter_context(room.open("w"))
        with door.open("w") as entering:
            fcntl.flock(entering, fcntl.LOCK_EX)
            fcntl.flock(inside, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
