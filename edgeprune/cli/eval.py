"""The command `edgeprune eval`: parse, call, print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from edgeprune.cli.console import (
    Against,
    AsJson,
    EvaluationFile,
    Judged,
    print_table,
    progress,
)

if TYPE_CHECKING:
    from edgeprune.quality.windows import Text
    from edgeprune.report.artifacts import Subject


def evaluate(
    artifact: Judged,
    against: Against = None,
    text: Annotated[Path | None, typer.Option(help=(
        "A text file to predict; when left out an excerpt of WikiText-2, and each kind of text by "
        "itself."))] = None,
    own: EvaluationFile = None,
    context: Annotated[int, typer.Option(min=2, help="Tokens of a window.")] = 512,
    stride: Annotated[int | None, typer.Option(min=1, help=(
        "Tokens from the beginning of a window to that of the next, of which that many are judged; "
        "the context when left out."))] = None,
    windows: Annotated[int, typer.Option(min=0, help=(
        "Windows that are read, from the text's beginning; 0 reads all of it."))] = 8,
    tasks: Annotated[str | None, typer.Option(help=(
        "Tasks joined by commas: .jsonl files (multiple choice or last words, no network needed), "
        "lm-eval's .yaml files, or names that lm-eval knows."))] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples of each task at most.")] = None,
    as_json: AsJson = False,
) -> None:
    """Judge the quality of an artifact by the runtime that is deployed, on this machine.

    Perplexity; with the unpruned model also the KL divergence from its predictions (mean, 99th
    percentile) and how often both hold the same token for the likeliest, on each of several kinds
    of text; of a run directory, what pruning and what quantization lost, apart.

    Example: edgeprune eval runs/my-run

    Another: edgeprune eval my-llama-Q4_K_M.gguf --against ./my-llama --tasks questions.jsonl
    """
    from edgeprune.data import text_of
    from edgeprune.data.kinds import Passage
    from edgeprune.errors import UsageError
    from edgeprune.quality.evaluate import evaluate as judge
    from edgeprune.quality.evaluate import judge_kinds
    from edgeprune.quality.tasks import named_tasks, task_scores
    from edgeprune.quality.windows import Reading, Text, evaluation_kinds
    from edgeprune.report.artifacts import learnt_of, subject_of
    from edgeprune.report.evaluation import HEADER, SCORES, quality_line, score_rows, step_rows
    from edgeprune.report.tables import KINDS, kind_rows
    from edgeprune.report.words import replies_in_words

    if stride is not None and stride > context:
        raise UsageError("a stride above the context would leave text out", got=stride,
                         remedy=f"take at most {context}, or a larger --context")
    if own is not None and text is not None:
        raise UsageError("--text is one text for perplexity, --evaluate a kind beside others",
                         got="both", remedy="give one of them")
    reading = Reading(context=context, stride=stride or context, windows=windows or None)
    read = None if text is None else Text(text.name, (text_of(text, "text"),))
    asked = named_tasks(tasks)
    learnt, gone = (frozenset[Passage](), ()) if own is None else learnt_of(artifact)
    kinds = evaluation_kinds(own, learnt)
    with progress(quiet=as_json) as (_, notify), TemporaryDirectory() as scratch:
        subject = subject_of(artifact, against, Path(scratch), notify=notify)
        if own is not None:
            _check_own(subject, kinds[0])
        if gone:
            print(f"the run learnt from {', '.join(map(str, gone))}, which can no longer be read: "
                  f"whether any of {own} was in it is not known", file=sys.stderr)
        found = judge(subject.artifact, original=subject.original, pruned=subject.pruned,
                      text=read, reading=reading, notify=notify)
        lost = None if read or not subject.original else judge_kinds(
            subject.artifact, subject.original, kinds, notify=notify)
        scores = task_scores(
            subject.artifact, asked, limit=limit, notify=notify) if asked else []
    if as_json:
        print(json.dumps({**found.model_dump(mode="json"),
                          "kinds": lost.model_dump(mode="json")["kinds"] if lost else None,
                          "replies": lost.replies.model_dump() if lost and lost.replies else None,
                          "tasks": [score.model_dump() for score in scores]}, indent=2))
        return
    print(quality_line(found))
    if rows := step_rows(found):
        print_table("what was lost", HEADER, rows)
    if lost:
        print_table("what was lost, by kind of text", KINDS, kind_rows(lost))
        if lost.replies:
            print(replies_in_words(lost.replies))
    if scores:
        print_table("tasks", SCORES, score_rows(scores))


def _check_own(subject: Subject, text: Text) -> None:
    """See whether an artifact can be judged on the user's text, before it is on others.

    Raises:
        UsageError: There is nothing to hold it against.
        InputError: The text is too short.
    """
    from edgeprune.errors import UsageError
    from edgeprune.quality.windows import check_length
    from edgeprune.report.artifacts import tokenizer_in

    if not subject.original:
        raise UsageError("--evaluate tells what was lost of the unpruned model, which is not known",
                         got=str(subject.artifact), remedy="name it with --against")
    check_length([text], tokenizer_in(subject.artifact))
