"""A transport that outlives its connection.

In: a transport. Out: one that does again what a lost connection cut off, with back-off, as long as
its patience lasts. So every command must be one that may be done twice, and every one is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from edgeprune.errors import ConnectionLost
from edgeprune.target.transport import (
    MOST_OUTPUT_BYTES,
    Completed,
    Progress,
    Transport,
    no_progress,
)

PATIENCE_S = 300  # without anything achieved: a board restarts in less
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 15.0
T = TypeVar("T")


class PersistentTransport:
    """See the module; `Transport` says what it does."""

    def __init__(
        self, way: Transport, notify: Callable[[str], None], *, patience_s: float = PATIENCE_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Wrap a transport.

        Args:
            way: The transport.
            notify: Told of each loss.
            patience_s: Seconds without anything achieved after which a loss is final.
            sleep: Waits some seconds.
        """
        self._way, self._notify, self._patience_s, self._sleep = way, notify, patience_s, sleep

    def run(self, argv: Sequence[str], *, timeout_s: float = 60) -> Completed:
        """See `Transport.run`."""
        return self._persist(lambda _: self._way.run(argv, timeout_s=timeout_s))

    def put(self, local: Path, remote: str, progress: Progress = no_progress) -> None:
        """See `Transport.put`."""
        furthest = 0

        def attempt(achieved: Callable[[], None]) -> None:
            def noted(done: int, total: int) -> None:
                nonlocal furthest
                if done > furthest:
                    furthest = done
                    achieved()
                progress(done, total)

            self._way.put(local, remote, noted)

        self._persist(attempt)

    def get(self, remote: str, local: Path, most_bytes: int = MOST_OUTPUT_BYTES) -> None:
        """See `Transport.get`."""
        self._persist(lambda _: self._way.get(remote, local, most_bytes))

    def close(self) -> None:
        """See `Transport.close`."""
        self._way.close()

    def _persist(self, attempt: Callable[[Callable[[], None]], T]) -> T:
        """Do something until it is done; it calls what it is given when it has achieved a part."""
        lost_at, wait_s = float("inf"), FIRST_WAIT_S

        def achieved() -> None:
            nonlocal lost_at, wait_s
            lost_at, wait_s = float("inf"), FIRST_WAIT_S

        while True:
            try:
                return attempt(achieved)
            except ConnectionLost as lost:
                lost_at = min(lost_at, time.monotonic())
                if time.monotonic() + wait_s - lost_at > self._patience_s:
                    raise
                self._notify(f"{lost.what}; trying again")
                self._sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
