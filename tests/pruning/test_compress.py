"""Repaired layers follow the unpruned model, on text that they were not fitted to."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgeprune.data.kinds import shipped_kinds
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import Cuts, Kept, kept_in_layer, kept_layers
from edgeprune.model.shape import Shape
from edgeprune.pruning import forward
from edgeprune.pruning.calibration import Corpus, calibration_corpus, tokens_by_kind
from edgeprune.pruning.compress import n_whole, repaired_layers
from edgeprune.pruning.criterion import Criterion, Method
from edgeprune.pruning.forward import Layers
from edgeprune.pruning.importance import layer_importance
from edgeprune.pruning.loss import Loss
from edgeprune.pruning.sample import Sample, Windows, sample, windows
from edgeprune.pruning.statistics import measure_statistics, read_statistics
from edgeprune.pruning.surgery import cut_layers


def _tokens(seed: int, *dims: int) -> Tensor:
    return torch.randint(0, 128, dims, generator=torch.Generator().manual_seed(seed))


def _kept(checkpoint: Checkpoint, cuts: Cuts, statistics: Path, method: Method) -> dict[int, Kept]:
    shape, found = checkpoint.shape, {}
    for layer in kept_layers(shape, cuts):
        importance = layer_importance(
            Criterion(method=method), forward.load_layer(checkpoint, layer), shape,
            read_statistics(statistics, layer), None, layer)
        found[layer] = kept_in_layer(shape, importance, cuts)
    return found


def _all_of(shape: Shape) -> Kept:
    return Kept(kv_heads=tuple(range(shape.num_key_value_heads)),
                query_heads=tuple(range(shape.num_attention_heads)),
                ffn_channels=tuple(range(shape.intermediate_size)))


def _unpruned(checkpoint: Checkpoint, tokens: Tensor) -> forward.Output:
    return forward.output_of(checkpoint, cut_layers(checkpoint, Cuts(), {}), tokens)


def _losses(
    checkpoint: Checkpoint, models: Iterable[Layers], tokens: Tensor, unpruned: forward.Output
) -> list[Loss]:
    return forward.losses([forward.output_of(checkpoint, layers, tokens) for layers in models],
                          unpruned, Sample.of_one_kind(tokens))


def test_with_nothing_cut_the_weights_stay_as_they_are(tiny: Path) -> None:
    checkpoint = Checkpoint(tiny)
    kept = {0: _all_of(checkpoint.shape)}  # named, and so fitted: where nothing lacks
    for layer, weights in repaired_layers(
            checkpoint, Cuts(), kept, Sample.of_one_kind(_tokens(1, 16, 24))):
        for name, weight in forward.load_layer(checkpoint, layer).items():
            torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=1e-4)


def test_what_comes_before_all_cuts_is_not_touched(tiny: Path) -> None:
    checkpoint = Checkpoint(tiny)
    last = checkpoint.shape.num_hidden_layers - 1
    changed = {layer for layer, weights in repaired_layers(
        checkpoint, Cuts(layers=(last,)), {}, Sample.of_one_kind(_tokens(1, 16, 24)))
        if not all(torch.equal(weights[name], weight)
                   for name, weight in forward.load_layer(checkpoint, layer).items())}
    assert changed == {last - 1}


@pytest.mark.parametrize(("dropped", "narrowed", "expected"), [
    ((), (), 6), ((4,), (), 3), ((5,), (), 4), ((0,), (), 0), ((1, 4), (), 0), ((4,), (2,), 2),
    ((2, 3), (), 1)])
def test_first_layers_that_lost_nothing(
    dropped: tuple[int, ...], narrowed: tuple[int, ...], expected: int,
) -> None:
    stays = [i for i in range(6) if i not in dropped]
    nothing = Kept(kv_heads=(), query_heads=(), ffn_channels=())
    assert n_whole(stays, dict.fromkeys(narrowed, nothing), 6) == expected


def test_what_others_repeat_is_made_up_for(tiny: Path) -> None:
    checkpoint = Checkpoint(tiny)
    shape = checkpoint.shape
    cuts = Cuts(ffn_channels=1)
    layers = {i: dict(forward.load_layer(checkpoint, i)) for i in range(shape.num_hidden_layers)}
    for weights in layers.values():
        for name in ("mlp.gate_proj.weight", "mlp.up_proj.weight"):
            weights[name][7] = weights[name][3]
    twin = _Edited(checkpoint, layers)
    whole = _all_of(shape)
    kept = {i: whole.model_copy(update={
        "ffn_channels": tuple(c for c in whole.ffn_channels if c != 7)}) for i in layers}
    text = Sample.of_one_kind(_tokens(1, 16, 24))
    models = repaired_layers(twin, cuts, kept, text), cut_layers(twin, cuts, kept)
    tokens = _tokens(2, 4, 24)
    ours, theirs = _losses(twin, models, tokens, _unpruned(twin, tokens))
    assert ours.divergence < 0.05 * theirs.divergence


class _Edited(Checkpoint):
    """A checkpoint of which some layers were changed."""

    def __init__(self, whole: Checkpoint, layers: dict[int, dict[str, Tensor]]) -> None:
        super().__init__(whole.path)
        self._layers = layers

    def tensor(self, name: str) -> Tensor:
        if not name.startswith("model.layers."):
            return super().tensor(name)
        layer, rest = name.removeprefix("model.layers.").split(".", 1)
        return self._layers[int(layer)][rest]


@pytest.fixture(scope="module")
def fitting(smollm2: Path) -> Sample:
    """Give windows of every calibration kind."""
    corpus = calibration_corpus()
    return sample(tokens_by_kind(corpus, smollm2 / "tokenizer.gguf"), corpus.share,
                  Windows(24, 128))


@pytest.fixture(scope="module")
def statistics(smollm2: Path, fitting: Sample, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give what SmolLM2's structures do on text."""
    directory = tmp_path_factory.mktemp("statistics")
    measure_statistics(Checkpoint(smollm2), fitting.tokens[::2], directory)
    return directory


@pytest.fixture(scope="module")
def held_out(smollm2: Path) -> dict[str, tuple[Tensor, forward.Output]]:
    """Give kinds of text that nothing is fitted to, and what the unpruned SmolLM2 makes of them."""
    tokens = tokens_by_kind(Corpus(shipped_kinds("evaluation")), smollm2 / "tokenizer.gguf")
    found = {kind: windows(ids, Windows(1, 256)) for kind, ids in tokens.items()}
    return {kind: (ids, _unpruned(Checkpoint(smollm2), ids)) for kind, ids in found.items()}


@pytest.mark.smollm2
@pytest.mark.parametrize("cuts", [
    Cuts(ffn_channels=768), Cuts(layers=(12, 20), kv_groups=1)])
def test_on_every_kind_of_text_repair_is_better_than_none(
    smollm2: Path, statistics: Path, fitting: Sample,
    held_out: dict[str, tuple[Tensor, forward.Output]], cuts: Cuts,
) -> None:
    checkpoint = Checkpoint(smollm2)
    kept = (_kept(checkpoint, cuts, statistics, Method.ENERGY) if cuts.narrows_layers else {})
    repaired = list(repaired_layers(checkpoint, cuts, kept, fitting))
    bare = list(cut_layers(checkpoint, cuts, kept))
    for kind, (tokens, unpruned) in held_out.items():
        ours, theirs = _losses(checkpoint, (repaired, bare), tokens, unpruned)
        print(f"{cuts}, {kind}: repaired {ours.nats:.3f}, bare {theirs.nats:.3f}")
        assert ours.nats < theirs.nats, kind
        assert ours.divergence < theirs.divergence, kind
