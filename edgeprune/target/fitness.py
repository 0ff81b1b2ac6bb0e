"""Checks of a target before anything is sent to it: can it run what is asked?

In: facts about a target, what is to be sent. Out: `DeviceError`s, each with its remedy.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgeprune.errors import DeviceError
from edgeprune.target.probe import DeviceFacts
from edgeprune.target.runtime import check_supported
from edgeprune.target.target import Target

OLDEST_PYTHON = (3, 9)
CLOCK_LIMIT_S = 24 * 3600


def problems(target: Target, facts: DeviceFacts) -> Iterator[DeviceError]:
    """Yield what keeps edgeprune from using a target at all."""
    name = target.name
    if tuple(int(part) for part in facts.python.split(".")[:2]) < OLDEST_PYTHON:
        yield DeviceError(f"{name}: python is too old", got=facts.python,
                          remedy="install python 3.9 or later there, and name it with 'python' in "
                          "the target file")
    if not target.is_local:
        try:
            check_supported(facts)
        except DeviceError as refused:
            yield DeviceError(f"{name}: {refused.what}", got=refused.got, remedy=refused.remedy)
    if not facts.writable:
        yield DeviceError(f"{name}: the work directory cannot be written",
                          got=target.work_directory,
                          remedy="name another one with 'work_directory' in the target file, or "
                          "is the disk mounted read-only?")
    if abs(facts.clock_ahead_s) > CLOCK_LIMIT_S:
        yield DeviceError(f"{name}: the clock is wrong", got=f"{facts.clock_ahead_s / 3600:+.0f} h",
                          remedy="set it there: timedatectl set-ntp true, or date -s")


def check_usable(target: Target, facts: DeviceFacts) -> None:
    """Refuse a target that cannot be used.

    Raises:
        DeviceError: The first of `problems`.
    """
    for problem in problems(target, facts):
        raise problem


def check_ram(target: Target, facts: DeviceFacts, model_bytes: int) -> None:
    """Refuse a model that is larger than what RAM a target has to spare.

    Raises:
        DeviceError: It would be read from the disk again and again, or be killed.
    """
    spare = facts.ram_bytes if facts.available_bytes is None else facts.available_bytes
    if model_bytes > spare:
        raise DeviceError(
            f"{target.name}: not enough RAM for a model of {model_bytes / 2**20:.0f} MiB",
            got=f"{spare / 2**20:.0f} MiB available of {facts.ram_bytes / 2**20:.0f}",
            remedy="end what else runs there, or take a smaller model")
