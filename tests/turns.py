"""Who runs when: two processes side by side, and at the end, alone, what measures this machine.

`make test` runs the tests in two processes (pytest-xdist). Tests of one file stay together, so that
what its fixtures make is made once; the slow files come first. Last, in one process, come the files
that measure this machine or run the whole main job on it: disturbed, they measure again, for three
times as long. Whichever of their tests has the mark `measures` also waits until the other process
has ended its last test. In one process (`pytest` alone) nothing here matters.
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

FIRST = ("tests/arm", "tests/recovery", "tests/debian/test_deploy.py", "tests/test_strategies.py")
LAST = ("tests/quality/test_judges.py", "tests/profiling/test_profile.py", "tests/test_cli.py",
        "tests/test_formats.py", "tests/test_pipeline.py")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slow files first, and last what measures."""
    order = (*FIRST, "", *LAST)
    items.sort(key=lambda item: order.index(next(
        (place for place in order if place and item.nodeid.startswith(place)), "")))


class _ByFile(LoadFileScheduling):  # type: ignore[misc]
    def _split_scope(self, nodeid: str) -> str:
        return "last" if nodeid.startswith(LAST) else str(super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep tests of a file together, and all that come last."""
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
