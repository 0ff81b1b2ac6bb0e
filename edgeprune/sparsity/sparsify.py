"""A checkpoint becomes a sparse one, layer by layer.

In: an open `Checkpoint`, a `Recipe`, calibration tokens. Out: a checkpoint directory with the same
shape, in the precision that it is stored in, with exact zeros in the linear matrices of its layers.

As in the authors' code of Wanda and SparseGPT a layer sees what the layers before it, sparse
already, put out: within a layer all matrices are judged by the inputs that the dense layer gives
them, then the layer is pruned, and its outputs are computed anew. One layer is in RAM at a time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from edgeprune.errors import InputError, UsageError
from edgeprune.model.checkpoint import Checkpoint, write_checkpoint
from edgeprune.model.shape import Shape, config_of_shape
from edgeprune.model.tensors import tensor_specs
from edgeprune.pruning import forward
from edgeprune.pruning.calibration import Corpus, calibration_corpus, draw, tokens_by_kind
from edgeprune.pruning.forward import Positions
from edgeprune.pruning.sample import Windows
from edgeprune.sparsity.masks import magnitude, wanda
from edgeprune.sparsity.recipe import Method, Recipe, check_rows
from edgeprune.sparsity.sparsegpt import Curvature, curvature, sparsegpt

CALIBRATION = Windows(n_windows=16, n_tokens=512)
# What the matrices of a layer are applied to; some share it.
INPUT_OF = {
    "self_attn.q_proj.weight": "attention", "self_attn.k_proj.weight": "attention",
    "self_attn.v_proj.weight": "attention", "self_attn.o_proj.weight": "heads",
    "mlp.gate_proj.weight": "ffn", "mlp.up_proj.weight": "ffn",
    "mlp.down_proj.weight": "channels",
}


def calibration_of(recipe: Recipe, tokenizer: Path | None, file: Path | None) -> Tensor | None:
    """Return the calibration tokens that a recipe needs; None when it needs none.

    Args:
        recipe: Magnitude needs none.
        tokenizer: `tokenizer.gguf`, or None for a model without one.
        file: The user's text, beside those that come with edgeprune.

    Raises:
        UsageError: There is a file, and the recipe needs none.
        InputError: There is no tokenizer, the file cannot be read, or the text is too short.
    """
    if not recipe.needs_activations:
        if file is not None:
            raise UsageError(f"{recipe.method} looks at no text", got=str(file),
                             remedy="leave --calibration out, or take another --method")
        return None
    if tokenizer is None:
        raise InputError(f"{recipe.method} needs the model's tokenizer, and it has none",
                         remedy="put tokenizer.json beside the weights, or take magnitude")
    return calibration_windows(calibration_corpus(file), tokenizer)


def calibration_windows(corpus: Corpus, tokenizer: Path) -> Tensor:
    """Return the windows of `CALIBRATION`, token ids, spread evenly over the text, `(b, t)`.

    Raises:
        InputError: The text is too short.
    """
    return draw(corpus, tokens_by_kind(corpus, tokenizer), CALIBRATION).tokens


def sparsify(
    checkpoint: Checkpoint, recipe: Recipe, tokens: Tensor | None, directory: Path,
    *, notify: Callable[[str], None] = lambda _: None,
) -> None:
    """Write the sparse checkpoint to `directory`, which appears when it is whole.

    Args:
        checkpoint: The dense model.
        recipe: Which zeros.
        tokens: Calibration token ids, `(b, t)`; None will do for magnitude.
        directory: Where to; a model that is there is replaced.
        notify: Told how far it is.

    Raises:
        UsageError: Rows do not fit the pattern, or a Hessian cannot be inverted.
    """
    check_rows(recipe, checkpoint.shape)
    part = directory.with_name(directory.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        write_checkpoint(part, config_of_shape(checkpoint.shape, checkpoint.config),
                         _sparse_tensors(checkpoint, recipe, tokens, notify),
                         companions=checkpoint.path)
        if directory.exists():
            shutil.rmtree(directory)
        part.rename(directory)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _sparse_tensors(
    checkpoint: Checkpoint, recipe: Recipe, tokens: Tensor | None, notify: Callable[[str], None]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the sparse model in their order."""
    shape = checkpoint.shape
    states = (forward.embed(checkpoint, tokens)
              if recipe.needs_activations and tokens is not None else None)
    positions = [] if states is None else forward.positions_of(shape, states.shape[1])
    for layer, specs in groupby(tensor_specs(shape), key=lambda spec: spec.layer):
        originals = ((spec.name, checkpoint.tensor(spec.name)) for spec in specs)
        if layer is None:
            yield from originals
            continue
        notify(f"{recipe.describe()}: layer {layer + 1} of {shape.num_hidden_layers}")
        weights = forward.load_layer(checkpoint, layer)
        known = {} if states is None else input_statistics(states, weights, shape, recipe,
                                                           positions[layer])
        for name, original in originals:
            within = name.removeprefix(f"model.layers.{layer}.")
            if within in INPUT_OF:
                sparse = sparse_matrix(weights[within], known.get(INPUT_OF[within]), recipe)
                original = sparse.to(original.dtype)  # noqa: PLW2901 - what is stored from now on
                weights[within] = original.float()
            yield name, original
        if states is not None:
            states = forward.run_layer(states, weights, shape, positions[layer])


def sparse_matrix(weight: Tensor, known: Tensor | Curvature | None, recipe: Recipe) -> Tensor:
    """Return a matrix with its zeros.

    Args:
        weight: `(n_rows, n_columns)`, float32.
        known: What `input_statistics` tells of its input.
        recipe: Which zeros.

    Raises:
        UsageError: The method needs calibration tokens, and there were none.
    """
    if recipe.method is Method.MAGNITUDE:
        return magnitude(weight, recipe)
    if recipe.method is Method.WANDA and isinstance(known, Tensor):
        return wanda(weight, known, recipe)
    if recipe.method is Method.SPARSEGPT and isinstance(known, Curvature):
        return sparsegpt(weight, known, recipe)
    raise UsageError(f"{recipe.method} needs calibration tokens", got=known,
                     remedy="only magnitude does without")


@torch.inference_mode()
def input_statistics(
    states: Tensor, weights: Mapping[str, Tensor], shape: Shape, recipe: Recipe,
    positions: Positions,
) -> dict[str, Tensor | Curvature]:
    """Return what the method needs of each input within a layer, by the names in `INPUT_OF`.

    Args:
        states: What goes into the layer, `(b, t, hidden_size)`.
        weights: Of the dense layer, by name within the layer.
        shape: Of the model.
        recipe: Wanda is told the norms of the features, SparseGPT their `Curvature`.
        positions: Of the tokens, as the layer knows them.
    """
    totals = dict[str, Tensor]()
    for window in states.split(1):  # all at once would hold every FFN channel of every token
        for name, inputs in linear_inputs(window, weights, shape, positions).items():
            x = inputs.flatten(0, 1)
            total = x.square().sum(0) if recipe.method is Method.WANDA else x.T @ x
            totals[name] = totals[name] + total if name in totals else total
    if recipe.method is Method.WANDA:
        return {name: squares.sqrt() for name, squares in totals.items()}
    return {name: curvature(gram, recipe.percdamp) for name, gram in totals.items()}


def linear_inputs(
    x: Tensor, weights: Mapping[str, Tensor], shape: Shape, positions: Positions
) -> dict[str, Tensor]:
    """Return what the matrices of a layer are applied to, by the names in `INPUT_OF`.

    Args:
        x: What goes into the layer, `(b, t, hidden_size)`.
        weights: Of the layer, by name within the layer.
        shape: Of the model.
        positions: Of the tokens, as the layer knows them.

    Returns:
        Tensors `(b, t, n_columns)`.
    """
    heads = forward.attention_heads(x, weights, shape, positions)
    middle = x + forward.project_out(heads, weights, shape)
    return {
        "attention": forward.rms_norm(x, weights["input_layernorm.weight"], shape.rms_norm_eps),
        "heads": heads,
        "ffn": forward.rms_norm(middle, weights[f"{shape.of.ffn_norm}.weight"],
                                shape.rms_norm_eps),
        "channels": forward.ffn_channels(middle, weights, shape),
    }
