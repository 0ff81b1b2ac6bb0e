"""The command `edgeprune judge`: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from edgeprune.cli.console import Against, AsJson, Judged, JudgeModel, JudgeName, progress


def judge(
    artifact: Judged,
    prompts: Annotated[Path, typer.Option(help=(
        "What both models reply to: lines, or .jsonl lines with a `prompt`."))],
    where: JudgeName = None,
    model: JudgeModel = None,
    against: Against = None,
    new: Annotated[int, typer.Option(min=1, help="Tokens of a reply, at most.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="Of replies; 0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of replies that are not greedy.")] = 0,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for one answer.")] = 60.0,
    retries: Annotated[int, typer.Option(min=0, help="After answers that did not come.")] = 3,
    workers: Annotated[int, typer.Option(min=1, help="Questions asked at a time.")] = 4,
    cache: Annotated[Path, typer.Option(help="Where replies and opinions are kept.")
    ] = Path("judged"),
    as_json: AsJson = False,
) -> None:
    """Let an LLM compare the replies of an artifact with those of the unpruned model.

    Each pair is shown in both orders; an opinion that follows the order is none. Interrupted, it
    goes on where it was when run again.

    Example: edgeprune judge runs/my-run --prompts prompts.txt --judge https://llm.example/v1
    --judge-model big

    Another: edgeprune judge small.gguf --against big.gguf --prompts prompts.txt --judge big.gguf
    """
    from edgeprune.errors import UsageError
    from edgeprune.quality.judge_backends import open_judge
    from edgeprune.quality.llm_judge import Replying, judge_artifact, read_prompts
    from edgeprune.report.artifacts import subject_of
    from edgeprune.report.words import judged_in_words

    if where is None:
        raise UsageError("there is no judge", remedy="--judge takes a URL or a .gguf file")
    asked = read_prompts(prompts)
    how = Replying(n_new=new, temperature=temperature, seed=seed)
    with progress(quiet=as_json) as (_, notify), TemporaryDirectory() as scratch:
        subject = subject_of(artifact, against, Path(scratch), notify=notify)
        if subject.original is None:
            raise UsageError("there is nothing to compare with", got=artifact,
                             remedy="name the unpruned model with --against")
        with open_judge(where, model, timeout_s=timeout, retries=retries, workers=workers,
                        notify=notify) as llm:
            found = judge_artifact(subject.artifact, subject.original, asked, llm, cache, how=how,
                                   notify=notify)
    print(found.model_dump_json(indent=2) if as_json else judged_in_words(found))
