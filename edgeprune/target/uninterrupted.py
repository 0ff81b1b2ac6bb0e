"""Calls that Ctrl-C must not interrupt halfway.

In: a call that takes locks, as all of paramiko's do. Out: what it returns or raises. CPython runs a
signal's handler between any two bytecodes of the main thread: a `KeyboardInterrupt` in the middle
of `threading.Condition` leaves its lock held, or releases it twice. The connection then hangs: the
command that was to end the job never arrived.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def uninterrupted(work: Callable[[], T]) -> T:
    """Do something in a thread of its own; an interrupt ends the waiting, not the work.

    Args:
        work: What is to be done. After an interrupt it goes on, and nobody hears how it ended.

    Raises:
        BaseException: What `work` raises.
    """
    ended: SimpleQueue[Future[T]] = SimpleQueue()  # in C: an interrupt cannot tear it

    def do() -> None:
        outcome: Future[T] = Future()
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - is raised where it is waited for
            outcome.set_exception(error)
        ended.put(outcome)

    Thread(target=do, daemon=True).start()
    return ended.get().result()
