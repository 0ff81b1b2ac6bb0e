"""What other programs rely on: `--help` of every command, and the schemas of JSON output.

    python -m tests.cli.public

writes both anew, for a change that is meant; the difference shows what such programs will notice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from edgeprune.cli.app import app
from edgeprune.deploy.manifest import Manifest
from edgeprune.planning.demand import Demand
from edgeprune.planning.greedy import Plan
from edgeprune.profiling.profile import Profile
from edgeprune.quality.llm_judge import Judged
from edgeprune.quality.results import Evaluation, Kinds
from edgeprune.quality.tasks import Score
from edgeprune.recovery.recipe import Recovered
from edgeprune.report.outcome import Outcome
from edgeprune.sparsity.effect import Effect
from edgeprune.target.measurement import Comparison, Measurement
from edgeprune.target.probe import DeviceFacts
from edgeprune.target.target import Target

HELP, SCHEMAS = (Path(__file__).with_name(name) for name in ("help.txt", "schemas.json"))
RECORDS = (Comparison, Demand, DeviceFacts, Effect, Evaluation, Judged, Kinds, Manifest,
           Measurement, Outcome, Plan, Profile, Recovered, Score, Target)


def help_of_every_command() -> str:
    """Return what `--help` says, of one command after another."""
    return "\n".join(_help(typer.main.get_command(app), "edgeprune", None))


def _help(command: Any, name: str, parent: typer.Context | None) -> Iterator[str]:
    context = command.make_context(name, [], parent=parent, resilient_parsing=True,
                                   terminal_width=100)
    yield f"$ {context.command_path} --help\n\n{command.get_help(context)}\n"
    if isinstance(command, TyperGroup):
        for one in command.list_commands(context):
            yield from _help(command.get_command(context, one), one, context)


def schemas() -> str:
    """Return the JSON schemas of what is printed and kept."""
    found = {record.__name__: record.model_json_schema() for record in RECORDS}
    return json.dumps(_without_words(found), indent=1, sort_keys=True) + "\n"


def _without_words(found: object) -> object:
    """Leave out what explains, and where records lie: docstrings and modules may change."""
    if isinstance(found, dict):
        return {_without_modules(key): _without_words(value) for key, value in found.items()
                if key not in {"description", "title"}}
    if isinstance(found, list):
        return [_without_words(one) for one in found]
    return _without_modules(found) if isinstance(found, str) else found


def _without_modules(name: str) -> str:
    """Leave only the package of what has the name of another record, too."""
    return re.sub(r"edgeprune__([a-z]+)__\w+__(?=[A-Z])", r"\1.", name)


if __name__ == "__main__":
    HELP.write_text(help_of_every_command(), encoding="utf-8")
    SCHEMAS.write_text(schemas(), encoding="utf-8")
