"""Persistence, on transports that break when they are told to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeprune.errors import ConnectionLost, DeviceError
from edgeprune.target.persistence import PersistentTransport
from edgeprune.target.transport import Completed, FakeTransport, Progress, no_progress


class Breaking(FakeTransport):
    """Breaks a number of times, then does what it is asked."""

    def __init__(self, breaks: int) -> None:
        super().__init__({"echo": Completed(0, "on\n")})
        self.breaks = breaks

    def run(self, argv: Sequence[str], *, timeout_s: float = 60) -> Completed:
        """Break, or answer from the table."""
        self._break()
        return super().run(argv, timeout_s=timeout_s)

    def put(self, local: Path, remote: str, progress: Progress = no_progress) -> None:
        """Come a little further each time."""
        progress(100 - self.breaks, 100)
        self._break()
        super().put(local, remote, progress)

    def _break(self) -> None:
        if self.breaks:
            self.breaks -= 1
            raise ConnectionLost("broken")


@given(st.integers(0, 12))
def test_it_goes_on_until_it_is_done(breaks: int) -> None:
    waits, way = list[float](), Breaking(breaks)
    persistent = PersistentTransport(way, lambda _: None, sleep=waits.append)
    assert persistent.run(["echo"]).stdout == "on\n"
    assert len(waits) == breaks
    assert waits == sorted(waits)
    assert max(waits, default=0) <= 15


def test_what_comes_further_each_time_never_wears_its_patience_out(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    way = Breaking(50)
    persistent = PersistentTransport(way, lambda _: None, patience_s=1, sleep=lambda _: None)
    persistent.put(tmp_path / "a", "there")
    assert way.files == {"there": b"a"}
    with pytest.raises(ConnectionLost):
        PersistentTransport(Breaking(50), lambda _: None, patience_s=1,
                            sleep=lambda _: None).run(["echo"])


def test_what_is_no_lost_connection_is_said_at_once() -> None:
    persistent = PersistentTransport(FakeTransport({}), lambda _: None)
    with pytest.raises(DeviceError, match="no such file"):
        persistent.get("nothing", Path("nowhere"))
