"""Sparse checkpoints: what stock transformers would have told each matrix, and a stock Llama."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn import Linear, Module
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from edgeprune.data import shipped_text
from edgeprune.errors import InputError, UsageError
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts
from edgeprune.model.gguf import GgufModel
from edgeprune.model.tensors import tensor_specs
from edgeprune.model.tokenizer import tokenizer_of
from edgeprune.pruning.sample import Windows, windows
from edgeprune.pruning.surgery import prune
from edgeprune.sparsity.recipe import Method, Recipe, read_recipe, sparse_matrices
from edgeprune.sparsity.sparsify import (
    CALIBRATION,
    calibration_of,
    sparsify,
)
from tests.sparsity.references import (
    groups_have_zeros,
    magnitude_reference,
    sparsegpt_reference,
    wanda_reference,
)
from tests.tiny import make_tiny

# twice as many tokens as the widest matrix has columns
TOKENS = torch.randint(0, 128, (4, 48), generator=torch.Generator().manual_seed(1))
SMALL: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "head_dim": 4,
                         "num_hidden_layers": 3}
RECIPES = [read_recipe(method, sparsity, pattern)
           for method in Method for sparsity, pattern in ((0.4, None), (None, "2:4"))]


def reference(weight: Tensor, inputs: Tensor, recipe: Recipe) -> Tensor:
    """Return one matrix as the references make it."""
    group = (0, 0) if recipe.pattern is None else (recipe.pattern.group, recipe.pattern.zeros)
    share = recipe.sparsity if recipe.pattern is None else None
    if recipe.method is Method.MAGNITUDE:
        return magnitude_reference(weight, share, *group)
    made = wanda_reference if recipe.method is Method.WANDA else sparsegpt_reference
    return made(weight, inputs, share, *group)


@torch.no_grad()
def sparse_in_transformers(directory: Path, recipe: Recipe) -> LlamaForCausalLM:
    """Make a model sparse in stock transformers, its whole forward run anew for each layer."""
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float64)
    seen: dict[Module, Tensor] = {}
    for module in model.modules():
        module.register_forward_pre_hook(
            lambda module, x: seen.__setitem__(module, x[0].flatten(0, 1)) if x else None)
    for layer in model.model.layers:
        model(TOKENS)
        for module in [m for m in layer.modules() if isinstance(m, Linear)]:
            module.weight.copy_(reference(module.weight, seen[module], recipe))
    return model


def assert_as_in_transformers(directory: Path, out: Path, recipe: Recipe) -> None:
    """Check a sparse checkpoint, zeros and repaired weights, against stock transformers."""
    sparsify(Checkpoint(directory), recipe, TOKENS, out)
    expected = sparse_in_transformers(directory, recipe).state_dict()
    found = Checkpoint(out)
    for spec in tensor_specs(found.shape):
        torch.testing.assert_close(found.tensor(spec.name).double(), expected[spec.name],
                                   rtol=0, atol=1e-4)
    for layer in range(found.shape.num_hidden_layers):
        for spec in sparse_matrices(found.shape, layer):
            assert torch.equal(found.tensor(spec.name) == 0, expected[spec.name] == 0), spec.name


@pytest.mark.parametrize("recipe", RECIPES, ids=Recipe.describe)
def test_layers_are_judged_by_what_the_sparse_layers_before_put_out(
    tmp_path: Path, recipe: Recipe
) -> None:
    assert_as_in_transformers(make_tiny(tmp_path / "dense", **SMALL), tmp_path / "out", recipe)


@pytest.mark.parametrize("method", [Method.WANDA, Method.SPARSEGPT])
def test_biases_are_heeded(tmp_path: Path, method: Method) -> None:
    dense = make_tiny(tmp_path / "dense", "mha-untied", attention_bias=True, mlp_bias=True, **SMALL)
    assert_as_in_transformers(dense, tmp_path / "out", read_recipe(method, 0.5))


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize(("pattern", "group", "zeros"), [("2:4", 4, 2), ("4:8", 8, 4)])
def test_patterns_have_exact_zeros_in_every_group_of_every_matrix(
    tiny: Path, tmp_path: Path, method: Method, pattern: str, group: int, zeros: int
) -> None:
    sparsify(Checkpoint(tiny), read_recipe(method, pattern=pattern), TOKENS, tmp_path / "out")
    found = Checkpoint(tmp_path / "out")
    for layer in range(found.shape.num_hidden_layers):
        for spec in sparse_matrices(found.shape, layer):
            assert groups_have_zeros(found.tensor(spec.name), group, zeros), spec.name


@pytest.mark.parametrize("method", list(Method))
def test_sparsity_is_exact_and_the_rest_is_bit_identical(
    tiny: Path, tmp_path: Path, method: Method
) -> None:
    source = Checkpoint(tiny)
    sparsify(source, read_recipe(method, 0.37), TOKENS, tmp_path / "out")
    found = Checkpoint(tmp_path / "out")
    assert found.shape == source.shape
    for spec in tensor_specs(source.shape):
        dense, sparse = source.tensor(spec.name), found.tensor(spec.name)
        if spec.layer is None or len(spec.axes) == 1:
            assert torch.equal(dense.view(torch.uint8), sparse.view(torch.uint8))
        elif method is Method.WANDA:
            assert ((sparse == 0).sum(1) == round(0.37 * dense.shape[1])).all()
        else:
            assert (sparse == 0).sum() == round(0.37 * dense.numel())
        if method is not Method.SPARSEGPT:
            assert torch.equal(sparse[sparse != 0], dense[sparse != 0])


@pytest.mark.parametrize("method", list(Method))
def test_the_sparse_model_generates_with_stock_transformers(
    tiny: Path, tmp_path: Path, method: Method
) -> None:
    sparsify(Checkpoint(tiny), read_recipe(method, 0.5), TOKENS, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    made = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=5, do_sample=False,
                          eos_token_id=None, pad_token_id=0)
    assert torch.as_tensor(made).shape == (1, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_stored_precision_is_kept_and_zeros_are_exact(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    model = AutoModelForCausalLM.from_pretrained(make_tiny(tmp_path / "a"), dtype=dtype)
    model.save_pretrained(tmp_path / "b")
    sparsify(Checkpoint(tmp_path / "b"), read_recipe("sparsegpt", pattern="2:4"), TOKENS,
             tmp_path / "c")
    weight = Checkpoint(tmp_path / "c").tensor("model.layers.2.mlp.up_proj.weight")
    assert weight.dtype == dtype
    assert groups_have_zeros(weight, 4, 2)


def test_rows_that_do_not_fit_are_refused_before_anything_is_written(
    tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="5:10"):
        sparsify(Checkpoint(tiny), read_recipe("wanda", pattern="5:10"), TOKENS, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_wanda_without_calibration_leaves_nothing_behind(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="wanda needs calibration tokens"):
        sparsify(Checkpoint(tiny), read_recipe("wanda", 0.5), None, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    sparsify(Checkpoint(tiny), read_recipe("magnitude", 0.5), None, tmp_path / "out")


def test_a_model_that_is_there_is_replaced(tiny: Path, tmp_path: Path) -> None:
    for sparsity in (0.2, 0.6):
        sparsify(Checkpoint(tiny), read_recipe("magnitude", sparsity), None, tmp_path / "out")
        weight = Checkpoint(tmp_path / "out").tensor("model.layers.0.mlp.up_proj.weight")
        assert (weight == 0).sum() == round(weight.numel() * sparsity)
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_calibration_is_the_shipped_text_and_half_of_it_the_users(
    small: Path, tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(small, tmp_path / "tokenizer.gguf")
    assert tokenizer is not None
    wanda = read_recipe("wanda", 0.5)
    shipped = calibration_of(wanda, tokenizer, None)
    assert shipped is not None
    assert tuple(shipped.shape) == tuple(CALIBRATION)
    (tmp_path / "text").write_text(shipped_text("evaluation"))
    other = calibration_of(wanda, tokenizer, tmp_path / "text")
    assert other is not None
    with GgufModel(tokenizer, vocab_only=True) as model:
        own = model.tokenize(shipped_text("evaluation"))
    seen = {tuple(own[i : i + CALIBRATION.n_tokens]) for i in range(len(own))}
    # half of the windows are the user's
    found = [sum(tuple(window) in seen for window in some.tolist()) for some in (shipped, other)]
    assert found == [0, CALIBRATION.n_windows // 2]
    assert calibration_of(read_recipe("magnitude", 0.5), None, None) is None


def test_calibration_that_cannot_be_had_is_told(small: Path, tmp_path: Path) -> None:
    tokenizer, wanda = tokenizer_of(small, tmp_path / "tokenizer.gguf"), read_recipe("wanda", 0.5)
    with pytest.raises(InputError, match="tokenizer"):
        calibration_of(wanda, None, None)
    with pytest.raises(InputError, match=r"nowhere\.txt"):
        calibration_of(wanda, tokenizer, tmp_path / "nowhere.txt")
    (tmp_path / "short").write_text("one sentence")
    with pytest.raises(InputError, match="too short"):
        calibration_of(wanda, tokenizer, tmp_path / "short")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(InputError, match="UTF-8"):
        calibration_of(wanda, tokenizer, tmp_path / "binary")


def states_of(directory: Path, tokens: Tensor) -> Tensor:
    """Return the last hidden states of a checkpoint by stock transformers in float32."""
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).model
    with torch.inference_mode():
        return torch.cat([model(window[None]).last_hidden_state for window in tokens])


def text_of(directory: Path, name: Literal["calibration", "evaluation"], count: int) -> Tensor:
    """Return windows of 256 tokens spread over a shipped text, `(count, 256)`."""
    with GgufModel(directory / "tokenizer.gguf", vocab_only=True) as model:
        return windows(model.tokenize(shipped_text(name)), Windows(count, 256))


@pytest.mark.smollm2
def test_ten_layers_of_smollm2_are_nearest_with_sparsegpt_then_wanda(
    smollm2: Path, tmp_path: Path
) -> None:
    # with 2048 tokens SparseGPT's Hessian of 1536 inputs is too noisy to win
    seen, unseen = text_of(smollm2, "calibration", 16), text_of(smollm2, "evaluation", 6)
    prune(Checkpoint(smollm2), Cuts(layers=tuple(range(10, 30))), {}, tmp_path / "dense")
    dense, wanted, errors = Checkpoint(tmp_path / "dense"), states_of(
        tmp_path / "dense", unseen), dict[Method, float]()
    for method in Method:
        sparsify(dense, read_recipe(method, pattern="2:4"), seen, tmp_path / method)
        missed = states_of(tmp_path / method, unseen) - wanted
        errors[method] = float(missed.pow(2).mean() / wanted.pow(2).mean())
        found = Checkpoint(tmp_path / method)
        for layer in range(found.shape.num_hidden_layers):
            for spec in sparse_matrices(found.shape, layer):
                zeros, before = ((checkpoint.tensor(spec.name) == 0).unflatten(1, (-1, 4)).sum(-1)
                                 for checkpoint in (found, dense))
                # its Q4_1 file holds whole runs of zeros: what was zero before stays so
                assert ((zeros == 2) | ((zeros > 2) & (zeros == before))).all(), spec.name
                assert (zeros == 2).float().mean() > 0.99
    print("squared error of the hidden states with 2:4: "
          + ", ".join(f"{name} {value:.3f}" for name, value in errors.items()))
    assert errors[Method.SPARSEGPT] < errors[Method.WANDA] < errors[Method.MAGNITUDE]
