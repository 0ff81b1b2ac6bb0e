"""The command `edgeprune recover`: parse, call, print."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli.console import AsJson, check_destination, progress

Way = Annotated[str, typer.Option("--method", "-m", help=(
    "distill: learn the unpruned model's predictions; sft: learn the text; distill-lora and "
    "sft-lora: the same with low-rank adapters, which are merged at the end."))]


def recover(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help=(
        "A run directory, or the checkpoint of a pruned model."))],
    data: Annotated[Path | None, typer.Option(help=(
        "What is learnt from: UTF-8 text, or .jsonl of text, of messages (with the model's chat "
        "template), or of prompt and completion. The shipped kinds when left out."))] = None,
    original: Annotated[str | None, typer.Option(help=(
        "The unpruned model: a directory, a .gguf file, a name; a run directory knows it."))
    ] = None,
    out: Annotated[Path | None, typer.Option(help=(
        "The checkpoint directory to write; DIR-recovered when left out, of a run directory "
        "DIR/model-recovered."))] = None,
    method: Way = "distill",
    epochs: Annotated[float | None, typer.Option(help="Times that the text is gone through.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of AdamW, at its highest.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Of the adapters.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help=(
        "Examples of one step, of all processes together."))] = None,
    micro_batch: Annotated[int | None, typer.Option(min=1, help=(
        "Examples that a process holds at a time; the rest is accumulated."))] = None,
    n_tokens: Annotated[int | None, typer.Option("--length", min=8, help="Tokens of an example.")
    ] = None,
    text_weight: Annotated[float | None, typer.Option("--text-weight", min=0, max=1, help=(
        "Distillation: share of the text's own cross entropy in the loss, 0 when left out; more "
        "also teaches the text's kind."))] = None,
    hidden_weight: Annotated[float | None, typer.Option("--hidden", min=0, help=(
        "Distill hidden states, too: the weight of their relative error."))] = None,
    seed: Annotated[int, typer.Option(help="Of the order of examples, and of adapters.")] = 0,
    checkpointing: Annotated[bool | None, typer.Option(
        "--gradient-checkpointing/--no-gradient-checkpointing", help=(
            "Compute activations again instead of holding them; when left out, where they would "
            "take half of the free RAM."))] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the model there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a pruned model, so that what was lost comes back; a model of the same shape.

    Killed or interrupted, it goes on where it was when run again. Several GPUs, processes or
    machines: put `accelerate launch -m edgeprune.cli` in the place of `edgeprune`.

    Example: edgeprune recover runs/my-run --data my-chats.jsonl

    Another: edgeprune recover ./my-pruned --original ./my-llama --method distill-lora
    """
    from edgeprune.model.config import CONFIG
    from edgeprune.recovery.recipe import check_installed, recipe_of
    from edgeprune.report.artifacts import pruned_of
    from edgeprune.report.recovery import recovery_lines

    recipe = recipe_of(method, epochs=epochs, learning_rate=learning_rate, rank=rank, batch=batch,
                       micro_batch=micro_batch, n_tokens=n_tokens, text_weight=text_weight,
                       hidden_weight=hidden_weight, seed=seed)
    check_installed()
    is_first = os.environ.get("RANK", "0") == "0"
    with progress(quiet=as_json or not is_first) as (_, notify):
        pruned, usual = pruned_of(directory, original, notify=notify)
        destination = out or usual
        models = [path for path in (pruned.path, pruned.original) if path is not None]
        check_destination(destination, *models, holds=CONFIG, force=force)
        destination.parent.mkdir(parents=True, exist_ok=True)
        from edgeprune.recovery.recover import recover as train  # seconds: not for what is refused

        found = train(pruned, destination, recipe, data=data, checkpointing=checkpointing,
                      work=destination.with_name(f".{destination.name}.training"), notify=notify)
    if found is None:  # not the first of several processes
        return
    if as_json:
        print(found.model_dump_json(indent=2))
        return
    for line in recovery_lines(found):
        print(line)
    print(f"model: {destination}")
