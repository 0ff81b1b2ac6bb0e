"""The command `edgeprune export`: parse, call, print."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli.console import (
    Adapter,
    AllowLoss,
    Format,
    Model,
    Quant,
    check_destination,
    number_format,
    progress,
    scratch_beside,
)
from edgeprune.model.quantization import DEFAULT_FORMAT


def export(
    model: Model,
    destination: Annotated[Path, typer.Argument(help=(
        "The .gguf file to write, or the directory of an ONNX model."))],
    adapter: Adapter = None,
    kind: Format = "gguf",
    quant: Quant = DEFAULT_FORMAT,
    allow_quality_loss: AllowLoss = False,
    force: Annotated[bool, typer.Option("--force", help=(
        "Overwrite the file, or the directory of an ONNX model."))] = False,
) -> None:
    """Convert a model to GGUF or ONNX, unpruned.

    Example: edgeprune export ./my-llama my-llama-Q5_K_M.gguf --quant Q5_K_M

    Another: edgeprune export ./my-llama my-llama-int8 --format onnx:int8
    """
    from edgeprune.model.checkpoint import Checkpoint
    from edgeprune.model.files import model_bytes
    from edgeprune.model.onnx_formats import FLOAT, GRAPH, is_onnx, is_quantized_onnx
    from edgeprune.model.quantization import check_format
    from edgeprune.model.source import resolve_model
    from edgeprune.model.tokenizer import tokenizer_of
    from edgeprune.quality.evaluate import perplexity
    from edgeprune.quality.loss import check_loss, perplexity_as
    from edgeprune.quality.verified import export_verified

    quant = check_format(number_format(kind, quant))
    read = [Path(model)] if adapter is None else [Path(model), adapter]
    check_destination(destination, *read, holds=GRAPH if is_onnx(quant) else None, force=force)
    with progress() as (say, notify):
        name, directory = resolve_model(model, adapter, notify=notify)
        checkpoint = Checkpoint(directory)
        with scratch_beside(destination) as part:
            tokenizer = tokenizer_of(directory, part / "tokenizer.gguf",
                                     checkpoint.shape.vocab_size)
            made = part / destination.name
            notify(f"writing {quant}")
            export_verified(checkpoint, tokenizer, made, quant=quant, name=name)
            if is_quantized_onnx(quant) and not allow_quality_loss:
                exact = perplexity_as(checkpoint, tokenizer, FLOAT, part, notify=notify)
                check_loss(quant, perplexity(made, notify=notify), exact)
            if destination.is_dir():
                shutil.rmtree(destination)
            made.replace(destination)
        say(f"{destination}: {model_bytes(destination) / 2**20:.1f} MiB, {quant}, "
            f"{checkpoint.shape.describe()}")
