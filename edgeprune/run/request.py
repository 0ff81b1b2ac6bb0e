"""The request of a run, kept in its directory, so that no other request goes on there.

In: `Options`, read and resolved. Out: a run directory that is for this request and no other. Fails
where the directory holds something else.
"""

from __future__ import annotations

import re
import shutil

from edgeprune.errors import UsageError
from edgeprune.planning.budget import Budget
from edgeprune.pruning.calibration import Effort, Objective
from edgeprune.records import Record
from edgeprune.run.options import Options
from edgeprune.run.strategies import DEFAULT_STRATEGY, STRATEGIES, Strategy
from edgeprune.rundir import REQUEST, RunDirectory

AUTO, NO_TEXT = "auto", "what comes with edgeprune"


class Request(Record):
    """What a run directory was made for: `request.json`."""

    model: str
    target: str
    budget: Budget
    quant: str
    strategy: Strategy
    effort: Effort
    objective: Objective = Objective.WORST
    calibration: str = NO_TEXT  # a digest of the user's

    def difference(self, other: Request) -> str:
        """Return in words what this one asks otherwise, and what the other asked."""
        return next("--calibration" if name == "calibration" else
                    f"{name}: {_shown(theirs)}, not {_shown(ours)}"
                    for (name, ours), (_, theirs) in zip(self, other, strict=True)
                    if ours != theirs)


def open_run(options: Options, request: Request) -> RunDirectory:
    """Find or make the run directory.

    Raises:
        UsageError: No good name, or something was made there for another request.
    """
    name = options.name or _name_of(request)
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise UsageError("a run's name is made of letters, digits, '.', '_' and '-'", got=name)
    path = options.runs / name
    file = path / REQUEST
    if path.exists() and not file.is_file():
        raise UsageError(f"{path} exists and is not a run directory",
                         remedy="choose another --name")
    if path.exists() and options.fresh:
        shutil.rmtree(path)
    run_directory = RunDirectory(path)
    if run_directory.is_begun and file.is_file() and (found := Request.read(file)) != request:
        raise UsageError(f"{path} holds a run of another {request.difference(found)}",
                         remedy="choose another --name, or start it over with --fresh")
    request.write(file)
    return run_directory


def _shown(asked: object) -> str:
    if isinstance(asked, Budget):
        return asked.text
    if isinstance(asked, Strategy):
        return f"{asked.name} by {asked.criterion.method}, repair {asked.repair}"
    return str(asked)


def _name_of(request: Request) -> str:
    text = f"{request.model}-{request.target}-{request.quant}-{request.budget.text}".lower()
    if (strategy := request.strategy) != STRATEGIES[DEFAULT_STRATEGY]:
        text += f"-{strategy.name}-{strategy.criterion.method}-{strategy.repair}"
    if request.effort is not Effort.MEDIUM:
        text += f"-{request.effort}"
    for sign, word in {"<": "-max-", ">": "-min-", "%": "pct"}.items():
        text = text.replace(sign, word)
    return re.sub(r"[^a-z0-9._]+", "-", text).strip("-.")
