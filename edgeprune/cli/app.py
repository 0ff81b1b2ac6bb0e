"""The command line: parse, call, print. Nothing else prints and sets exit codes.

Its larger commands are in modules beside this one, what they share in `edgeprune.cli.console`.
Results go to stdout, progress and errors to stderr. Heavy modules are loaded by the command that
needs them, so `--help` stays instant.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from safetensors import SafetensorError

from edgeprune.cli.bench import bench
from edgeprune.cli.console import Interrupted, heed_signals
from edgeprune.cli.deploy import deploy, package, rollback, status, undeploy
from edgeprune.cli.eval import evaluate
from edgeprune.cli.export import export
from edgeprune.cli.judge import judge as judge_command
from edgeprune.cli.plan import plan, profile
from edgeprune.cli.recover import recover as recover_command
from edgeprune.cli.run import run
from edgeprune.cli.serve import serve
from edgeprune.cli.sparsify import sparsify
from edgeprune.cli.target import target_app
from edgeprune.errors import EdgePruneError, UsageError
from edgeprune.model.files import users_path
from edgeprune.records import __version__

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Fit a language model to an ARM machine: measure the machine, prune to a budget, "
    "quantize, and verify on the machine itself.\n\n"
    "Exit codes: 0 budget met, 2 usage, 3 infeasible, 4 inconclusive, 5 device error, 6 input "
    "error, 7 budget missed, 8 an ONNX format loses too much, 9 a judge cannot be asked, 10 a "
    "target refused a bundle, 130 interrupted, 1 our own fault.\n\n"
    "Example: edgeprune run smollm2 --target local --budget '100 tokens < 75%'",
)
app.add_typer(target_app, name="target")

INTERRUPTED = 130  # what shells give a program that Ctrl-C ended
# a path of the user's that cannot be what it was given for
NOT_USABLE = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS,
              errno.ENAMETOOLONG}
# a disk that takes no more, or no file so large: as the system, safetensors and numpy say it
FULL = re.compile("No space left on device|Disk quota exceeded|File too large|"
                  r"\d+ requested and \d+ written")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    heed_signals()
    # transformers' own progress bars would be drawn over ours
    os.environ.setdefault("TQDM_DISABLE", "1")
    # torch's threads wait for each other asleep, so that other processes have the CPU
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        words = [_at_home(word) for word in (sys.argv[1:] if argv is None else argv)]
        _refuse_empty(words)
        app(args=words, prog_name="edgeprune")
    except EdgePruneError as error:
        # what a device said may be in it: nothing that a terminal obeys
        said = "".join(char if char.isprintable() else "?" for char in str(error))
        print(f"error: {said}", file=sys.stderr)
        return error.exit_code
    except (OSError, SafetensorError) as error:
        if (line := _of_the_disk(error)) is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return UsageError.exit_code
    except Interrupted:
        return _interrupted()
    except SystemExit as end:  # Typer ends with it, usage errors included
        if end.code == INTERRUPTED:
            return _interrupted()
        return end.code if isinstance(end.code, int) else 1
    return 0


def _at_home(word: str) -> str:
    """Return a word of the command line with `~` for the home directory, as shells write it out.

    They leave it in quotes, and after an option's `=`.
    """
    option, equals, value = word.partition("=")
    if option.startswith("--") and value.startswith("~"):
        return f"{option}{equals}{users_path(value)}"
    return str(users_path(word)) if word.startswith("~") else word


def _refuse_empty(words: Sequence[str]) -> None:
    """Refuse a word of the command line without a letter: as a path it would be the directory here.

    Raises:
        UsageError: There is one.
    """
    for before, word in pairwise(["edgeprune", *words]):
        option, equals, value = word.partition("=")
        where = f"after {before}"
        if option.startswith("--") and equals:
            where, word = f"for {option}", value  # noqa: PLW2901
        if not word.strip():
            raise UsageError(f"an empty argument {where}", got=word,
                             remedy="leave it out, or look whether a variable of the shell is set")


def _interrupted() -> int:
    print("interrupted: run again to go on, finished stages are kept", file=sys.stderr)
    return INTERRUPTED


def _of_the_disk(error: OSError | SafetensorError) -> str | None:
    """Return what is wrong with a path or a disk of the user's; None where it is our own fault."""
    if FULL.search(str(error)):
        return (f"the disk takes no more ({error}). Free some space, or take another disk, and run "
                "again: finished stages are kept")
    if isinstance(error, OSError) and error.errno in NOT_USABLE and error.filename is not None:
        return f"{error.filename}: {error.strerror}. Give another path"
    return None


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - Typer calls it so
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    verbose: Annotated[bool, typer.Option(
        "--verbose", "-v", help="Log what is done, llama.cpp's messages included.")] = False,
    _version: Annotated[bool, typer.Option(
        "--version", help="Print the version.", is_eager=True, callback=_print_version)] = False,
) -> None:
    """Set up logging."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.ERROR, format="%(name)s: %(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_path=False)],
    )
    logging.getLogger("paramiko").setLevel(logging.INFO if verbose else logging.CRITICAL)


app.command()(run)
app.command()(export)
app.command()(bench)
app.command()(plan)
app.command()(profile)
app.command("eval")(evaluate)
app.command("judge")(judge_command)
app.command("recover")(recover_command)
for _command in (serve, package, deploy, status, rollback, undeploy):
    app.command()(_command)
app.command()(sparsify)
