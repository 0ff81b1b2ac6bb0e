"""The artifacts and models that the user named, opened for `eval`, `judge` and `recover`.

In: a GGUF file, the directory of an ONNX model or of a checkpoint, `smollm2`, or a run directory;
and what it is held against. Out: artifacts. Checkpoints become F16 files in a scratch directory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from edgeprune.data.kinds import Passage, passages_of
from edgeprune.errors import InputError
from edgeprune.export.artifact import artifact_name
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import kept_layers
from edgeprune.model.files import is_gguf, users_path
from edgeprune.model.onnx_formats import GRAPH
from edgeprune.model.source import resolve_model
from edgeprune.model.tokenizer import NAME, tokenizer_of
from edgeprune.quality.verified import export_verified
from edgeprune.recovery.recipe import Pruned
from edgeprune.report.outcome import Outcome
from edgeprune.rundir import MODEL, OUTCOME, RECOVERED, REQUEST

EXACT = "F16"


class Subject(NamedTuple):
    """Artifacts of one tokenizer.

    Attributes:
        artifact: What is judged.
        original: The unpruned model; None when it is not known.
        pruned: The pruned model before it was quantized; None when it is not known.
    """

    artifact: Path
    original: Path | None = None
    pruned: Path | None = None


def subject_of(
    reference: str, against: str | None, scratch: Path,
    *, notify: Callable[[str], None] = lambda _: None,
) -> Subject:
    """Find or make what is judged.

    Args:
        reference: What the user named.
        against: The unpruned model; a run directory knows its own.
        scratch: An existing directory for F16 files of checkpoints.
        notify: Told what is being done just now.

    Raises:
        InputError: Nothing is there that could be judged.
    """
    path = users_path(reference)
    if not (path / REQUEST).is_file():
        return Subject(artifact_of(reference, scratch / "judged", notify=notify),
                       _maybe(against, scratch, notify))
    outcome = outcome_of(path)
    return Subject(path / outcome.artifact.relative_to(outcome.directory),
                   _maybe(against or str(outcome.source), scratch, notify),
                   artifact_of(str(path / (RECOVERED if outcome.recovery else MODEL)),
                               scratch / "pruned", notify=notify))


def learnt_of(reference: str) -> tuple[frozenset[Passage], tuple[Path, ...]]:
    """Return what a run was calibrated and trained on of the user's; nothing of what is no run.

    Returns:
        Passages, and the files of it that can no longer be read.

    Raises:
        InputError: The run has not come to its end.
    """
    path = users_path(reference)
    passages, gone = frozenset[Passage](), list[Path]()
    for file in outcome_of(path).learnt if (path / REQUEST).is_file() else ():
        try:
            passages |= passages_of([file], "text")
        except InputError:
            gone.append(file)
    return passages, tuple(gone)


def tokenizer_in(artifact: Path) -> Path:
    """Return the GGUF file that holds an artifact's tokenizer."""
    return artifact / NAME if artifact.is_dir() else artifact


class Servable(NamedTuple):
    """What can be served.

    Attributes:
        artifact: A GGUF file, or the directory of an ONNX model.
        name: What clients call it.
        n_ctx: Tokens that a run's budget needs; None when nothing is known of it.
    """

    artifact: Path
    name: str
    n_ctx: int | None = None


def servable_of(path: Path) -> Servable:
    """Find what is to be served: an artifact, or that of a run.

    Raises:
        InputError: Nothing is there that could be served.
    """
    if (path / REQUEST).is_file():
        outcome = outcome_of(path)
        return Servable(path / outcome.artifact.relative_to(outcome.directory), outcome.model,
                        outcome.budget.n_ctx)
    if not ((path / GRAPH).is_file() or is_gguf(path)):
        raise InputError("that is neither an artifact nor a run", got=str(path),
                         remedy="make one: edgeprune export MODEL model.gguf")
    return Servable(path, path.stem if path.is_file() else path.name)


def pruned_of(
    directory: Path, original: str | None, *, notify: Callable[[str], None] = lambda _: None
) -> tuple[Pruned, Path]:
    """Find a pruned model that is to be trained, and say where the trained one goes.

    Args:
        directory: A run directory, or a checkpoint.
        original: The unpruned model; a run directory knows its own.
        notify: Told what is being done just now.

    Raises:
        InputError: Nothing of the kind is there.
    """
    source = None if original is None else resolve_model(original, notify=notify)[1]
    if not (directory / REQUEST).is_file():
        return Pruned(directory, source), directory.with_name(f"{directory.name}-recovered")
    outcome = outcome_of(directory)
    kept = kept_layers(outcome.plan.base, outcome.plan.cuts)
    return (Pruned(directory / MODEL, source or outcome.source, kept),
            directory / "model-recovered")


def outcome_of(run: Path) -> Outcome:
    """Return what a run has come to.

    Raises:
        InputError: It has not come to its end.
    """
    if not (run / OUTCOME).is_file():
        raise InputError("the run has not come to its end", got=str(run),
                         remedy="run it again: finished stages are kept")
    return Outcome.read(run / OUTCOME)


def artifact_of(
    reference: str, scratch: Path, *, notify: Callable[[str], None] = lambda _: None
) -> Path:
    """Return the artifact that the user named, or a checkpoint as an F16 file in `scratch`.

    Raises:
        InputError: Nothing of the kind is there.
    """
    path = users_path(reference)
    if (path / GRAPH).is_file() or is_gguf(path):
        return path
    name, directory = resolve_model(reference, notify=notify)
    scratch.mkdir(parents=True, exist_ok=True)
    made = scratch / artifact_name(name, EXACT)
    notify(f"writing {name} as {EXACT}")
    checkpoint = Checkpoint(directory)
    tokenizer = tokenizer_of(directory, scratch / NAME, checkpoint.shape.vocab_size)
    export_verified(checkpoint, tokenizer, made, quant=EXACT, name=name)
    return made


def _maybe(
    against: str | None, scratch: Path, notify: Callable[[str], None]
) -> Path | None:
    return None if against is None else artifact_of(against, scratch / "against", notify=notify)
