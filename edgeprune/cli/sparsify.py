"""The command `edgeprune sparsify`: parse, call, print."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from edgeprune.cli.console import (
    AsJson,
    Model,
    Quant,
    Targets,
    check_destination,
    print_table,
    progress,
    scratch_beside,
)


def sparsify(
    model: Model,
    destination: Annotated[Path, typer.Argument(help="The checkpoint directory to write.")],
    method: Annotated[str, typer.Option(help=(
        "magnitude: the smallest weights; wanda: the smallest products of weight and input norm; "
        "sparsegpt: the weights that cost least, the others repaired."))],
    sparsity: Annotated[float | None, typer.Option(
        help="Share of the weights that become zero, between 0 and 1.")] = None,
    pattern: Annotated[str | None, typer.Option(
        help="N:M, such as 2:4 or 4:8: N of every M consecutive weights stay.")] = None,
    target: Annotated[str | None, typer.Option("--target", "-t", help=(
        "Measure dense and sparse model there: 'local', a name in targets/, or a .toml file."))
    ] = None,
    quant: Quant = "Q4_K_M",
    percdamp: Annotated[float, typer.Option(
        help="SparseGPT: damping, as a share of the Hessian's mean diagonal.")] = 0.01,
    blocksize: Annotated[int, typer.Option(help="SparseGPT: columns of a block.")] = 128,
    calibration: Annotated[Path | None, typer.Option(
        help="Wanda, SparseGPT: text like that which the model is for, as for `run`.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the model there.")] = False,
    targets: Targets = Path("targets"),
    as_json: AsJson = False,
) -> None:
    """Zero weights, anywhere or N:M, and say what that does to the quantized model.

    The matrices keep their size: no CPU runtime that edgeprune deploys to gets faster by it.

    Example: edgeprune sparsify ./my-llama ./my-llama-2-4 --method sparsegpt --pattern 2:4
    """
    from edgeprune.model.quantization import check_format
    from edgeprune.sparsity.recipe import check_rows, read_recipe
    from edgeprune.target.target import load_target

    # what is refused at once does not wait for torch
    quant = check_format(quant)
    recipe = read_recipe(method, sparsity, pattern, percdamp=percdamp, blocksize=blocksize)
    where = None if target is None else load_target(target, targets)

    from edgeprune.model.checkpoint import Checkpoint
    from edgeprune.model.config import CONFIG
    from edgeprune.model.source import resolve_model
    from edgeprune.model.tokenizer import tokenizer_of
    from edgeprune.records import Verdict
    from edgeprune.sparsity.effect import Models, measure_effect
    from edgeprune.sparsity.render import HEADER, effect_lines, effect_rows
    from edgeprune.sparsity.sparsify import calibration_of
    from edgeprune.sparsity.sparsify import sparsify as write_sparse
    from edgeprune.target.session import open_device

    with progress(quiet=as_json) as (_, notify), ExitStack() as stack:
        directory = resolve_model(model, notify=notify)[1]
        check_destination(destination, directory, holds=CONFIG, force=force)
        checkpoint = Checkpoint(directory)
        check_rows(recipe, checkpoint.shape)
        # a target that cannot be reached is told before the work, not after it
        device = None if where is None else stack.enter_context(open_device(where, notify=notify))
        scratch = stack.enter_context(scratch_beside(destination))
        tokenizer = tokenizer_of(directory, scratch / "tokenizer.gguf",
                                 checkpoint.shape.vocab_size)
        tokens = calibration_of(recipe, tokenizer, calibration)
        write_sparse(checkpoint, recipe, tokens, destination, notify=notify)
        effect = measure_effect(Models(checkpoint, Checkpoint(destination), tokenizer), recipe,
                                scratch, quant=quant, device=device, notify=notify)
    if as_json:
        print(effect.model_dump_json(indent=2))
    else:
        print_table(f"{model}, {recipe.describe()}", HEADER, effect_rows(effect))
        for line in effect_lines(effect):
            print(line)
        print(f"model: {destination}")
    if effect.speed is not None and effect.speed.comparison.disturbances:
        raise typer.Exit(Verdict.INCONCLUSIVE.exit_code)
