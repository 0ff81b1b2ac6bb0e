"""The error tree: what failed, the value received, the remedy, and the exit code.

    EdgePruneError            1  our own fault
    ├── UsageError            2  a budget, a target file or an option that cannot be read
    ├── InfeasibleError       3  nothing that the allowed cuts reach holds the budget
    ├── DeviceError           5  the target: unreachable, refused, or a job failed on it
    │   └── ConnectionLost    5  the way to it broke; what was begun may be tried again
    ├── InputError            6  the model or a text file
    ├── QualityError          8  a number format loses too much to be deployed
    ├── JudgeError            9  an LLM judge cannot be asked
    └── DeploymentError      10  a target refused a bundle, or what is served there is not well

Verdicts that are not failures have codes of their own: 0 met, 4 inconclusive, 7 missed (see
`edgeprune.records.Verdict`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from textwrap import shorten
from typing import ClassVar

# What readers of files raise on bytes that make no sense; of our own errors it holds none.
MALFORMED = (ArithmeticError, AttributeError, LookupError, MemoryError, OSError, RuntimeError,
             TypeError, ValueError)


class EdgePruneError(Exception):
    """A failure with one clear line for the user.

    Attributes:
        exit_code: Exit status of the command line for this kind of failure.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, got: object = None, remedy: str = "") -> None:
        parts = [what if got is None else f"{what}: got {got!r}"]
        if remedy:
            parts.append(remedy)
        super().__init__(". ".join(part.rstrip(".") for part in parts))
        self.what, self.got, self.remedy = what, got, remedy


class UsageError(EdgePruneError):
    """What the user wrote (an option, a budget, a target file) cannot be understood."""

    exit_code = 2


class InfeasibleError(EdgePruneError):
    """No shape that the allowed moves reach holds the budget."""

    exit_code = 3


class DeviceError(EdgePruneError):
    """The target cannot be reached, refuses us, or failed to do a job."""

    exit_code = 5


class ConnectionLost(DeviceError):  # noqa: N818 - what befell it, as ConnectionResetError
    """The way to the target broke or cannot be opened; trying again may help."""


class InputError(EdgePruneError):
    """The model or another input file is missing, broken or unsupported."""

    exit_code = 6


class QualityError(EdgePruneError):
    """A number format loses so much by itself that the artifact is refused."""

    exit_code = 8


class JudgeError(EdgePruneError):
    """The LLM that judges replies cannot be reached, or refuses."""

    exit_code = 9


class DeploymentError(EdgePruneError):
    """A target refused a bundle; what was served there before still is."""

    exit_code = 10


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a remedy naming the known word nearest to `word`, or all known words."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"


def said(error: BaseException, width: int = 200) -> str:
    """Return what another library's error says, in one line, cut between words."""
    lines = getattr(error, "errors", None)
    if callable(lines) and (found := lines()) and isinstance(found[0], dict):  # pydantic's
        place = ".".join(str(part) for part in found[0].get("loc", ()))
        text = str(found[0].get("msg", "")).removeprefix("Value error, ")
        return shorten(f"{place}: {text}" if place else text, width, placeholder=" ...")
    return shorten(str(error), width, placeholder=" ...")
