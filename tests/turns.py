"""Who runs when: some processes side by side, and at the end, alone, what measures this machine.

`make test` runs the tests in three processes (pytest-xdist), so that two cores have something to do
while some wait for a machine or for their turn. Tests of one file stay together, so that
what its fixtures make is made once; the slow files come first, and last what needs this machine for
itself: tests with the mark `measures` wait until the others have ended their last tests. What all
processes need is made by the first one while the others wait (`once`). In one process (`pytest`
alone) nothing here matters.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

FIRST = ("tests/arm", "tests/run/test_pipeline.py", "tests/run/test_smollm2.py",
         "tests/test_generations.py", "tests/recovery", "tests/debian/test_deploy.py",
         "tests/cli/test_app.py", "tests/quality/test_judge_backends.py",
         "tests/model/test_families.py", "tests/run/test_strategies.py",
         "tests/pruning/test_compress.py", "tests/quality")
LAST = ("tests/profiling/test_profile.py::test_the_best_number", "tests/run/test_onnx_choice.py",
        "tests/run/test_measured.py")
RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID")


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
    with _inside(alone=item.get_closest_marker("measures") is not None):
        return (yield)


@contextmanager
def once(what: str) -> Iterator[bool]:
    """Tell whether this process is the first to come here; the others wait until it is done."""
    if RUN is None:
        yield True
        return
    with _file(what).open("a") as mine:
        fcntl.flock(mine, fcntl.LOCK_EX)
        yield not _file(what).stat().st_size
        mine.write("done")


@contextmanager
def _inside(*, alone: bool) -> Iterator[None]:
    """Be in the room, with others or alone.

    At its door one waits after another: who wants to be alone lets nobody in before it.
    """
    if RUN is None:
        yield
        return
    with _file("room").open("w") as room:
        with _file("door").open("w") as door:
            fcntl.flock(door, fcntl.LOCK_EX)
            fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


def _file(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"edgeprune-tests-{RUN}-{name}"
