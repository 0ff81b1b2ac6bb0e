"""Importance: each criterion is its formula, written out straight."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import ValidationError
from torch import Tensor

from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.cuts import LayerImportance
from edgeprune.model.shape import Shape
from edgeprune.pruning import forward
from edgeprune.pruning.criterion import Criterion, Method
from edgeprune.pruning.elimination import elimination_order
from edgeprune.pruning.gradients import Gradients, layer_gradients
from edgeprune.pruning.importance import layer_importance
from edgeprune.pruning.statistics import Statistics
from tests.tiny import make_tiny

TOKENS = torch.randint(0, 128, (3, 12), generator=torch.Generator().manual_seed(1))
LAYER = 1
Reduce = Literal["sum", "prod", "max", "last"]
REDUCED: dict[Reduce, Callable[[list[float]], float]] = {
    "sum": sum, "prod": prod, "max": max, "last": lambda parts: parts[-1]}


class World:
    """A tiny model, and what is known about one layer of it."""

    def __init__(self, directory: Path) -> None:
        self.checkpoint = Checkpoint(directory)
        self.shape: Shape = self.checkpoint.shape
        self.weights = forward.load_layer(self.checkpoint, LAYER)
        positions = forward.positions_of(self.shape, TOKENS.shape[1])
        x = forward.embed(self.checkpoint, TOKENS)
        for layer in range(LAYER):
            x = forward.decoder_layer(x, forward.load_layer(self.checkpoint, layer), self.shape,
                                      positions[layer])
        heads = forward.attention_heads(x, self.weights, self.shape, positions[LAYER])
        x = x + forward.project_out(heads, self.weights, self.shape)
        # what o_proj and down_proj take in, (tokens, width)
        self.heads = heads.flatten(0, 1)
        self.channels = forward.ffn_channels(x, self.weights, self.shape).flatten(0, 1)
        self.statistics = Statistics(
            self.heads.T @ self.heads, self.channels.T @ self.channels, self.heads.mean(0),
            self.channels.mean(0), len(self.heads))

    def gradients(self) -> Gradients:
        """Return the gradients of the layer."""
        return dict(layer_gradients(self.checkpoint, TOKENS))[LAYER]

    def importance(
        self, criterion: Criterion, gradients: Gradients | None = None, layer: int = LAYER
    ) -> LayerImportance:
        """Return the importance by a criterion, given the statistics only if it needs them."""
        return layer_importance(criterion, self.weights, self.shape,
                                self.statistics if criterion.needs_statistics else None,
                                gradients, layer)

    def rows(self, head: int) -> slice:
        """Return the rows of q_proj, or columns of o_proj, of a head."""
        return slice(head * self.shape.head_dim, (head + 1) * self.shape.head_dim)

    def loss(self, change: Callable[[dict[str, Tensor]], None]) -> float:
        """Return the loss in float64 after a change of the layer's weights."""
        cos, sin, _ = forward.positions_of(self.shape, TOKENS.shape[1])[LAYER]
        x = forward.embed(self.checkpoint, TOKENS).double()
        for layer in range(self.shape.num_hidden_layers):
            weights = {name: weight.double() for name, weight in
                       forward.load_layer(self.checkpoint, layer).items()}
            if layer == LAYER:
                change(weights)
            x = forward.decoder_layer(x, weights, self.shape,
                                      forward.Positions(cos.double(), sin.double()))
        head = forward.output_head(self.checkpoint)
        logits = forward.Head(head.norm.double(), head.projection.double(), head.eps).logits(x)
        return float(F.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()))


@pytest.fixture(scope="module")
def world(tiny: Path) -> World:
    return World(tiny)


def _parts_of_channel(channel: int, of: dict[str, Tensor]) -> list[Tensor]:
    return [of["mlp.gate_proj.weight"][channel], of["mlp.up_proj.weight"][channel],
            of["mlp.down_proj.weight"][:, channel]]


def _parts_of_head(world: World, head: int, of: dict[str, Tensor]) -> list[tuple[Tensor, float]]:
    """Return the weights of a head, and the share of them that is its own."""
    size = world.shape.queries_per_group
    group = world.rows(head // size)
    return [(of["self_attn.k_proj.weight"][group], 1 / size),
            (of["self_attn.v_proj.weight"][group], 1 / size),
            (of["self_attn.q_proj.weight"][world.rows(head)], 1.0),
            (of["self_attn.o_proj.weight"][:, world.rows(head)], 1.0)]


@pytest.mark.parametrize("method", Method)
def test_every_method_gives_a_finite_number_for_each_head_and_channel(
    world: World, method: Method
) -> None:
    criterion = Criterion(method=method)
    found = world.importance(criterion, world.gradients() if criterion.needs_gradients else None)
    assert len(found.heads) == world.shape.num_attention_heads
    assert len(found.channels) == world.shape.intermediate_size
    for numbers in (found.heads, found.channels):
        assert np.isfinite(numbers).all()
        assert min(numbers) >= 0
        assert len(set(numbers)) > 1


@pytest.mark.parametrize("reduce", REDUCED)
def test_magnitude_is_the_squared_norm_of_what_is_cut(world: World, reduce: Reduce) -> None:
    found = world.importance(Criterion(method=Method.MAGNITUDE, reduce=reduce))
    for channel, importance in enumerate(found.channels):
        parts = [float(part.norm()) ** 2 for part in _parts_of_channel(channel, world.weights)]
        assert importance == pytest.approx(REDUCED[reduce](parts), rel=1e-4)
    for head, importance in enumerate(found.heads):
        parts = [share * float(part.norm()) ** 2
                 for part, share in _parts_of_head(world, head, world.weights)]
        assert importance == pytest.approx(REDUCED[reduce](parts), rel=1e-4)


def test_the_heads_of_a_group_count_its_keys_and_values_once(world: World) -> None:
    heads = world.importance(Criterion(method=Method.MAGNITUDE)).heads
    attention = sum(float(world.weights[f"self_attn.{name}_proj.weight"].norm()) ** 2
                    for name in "qkvo")
    assert sum(heads) == pytest.approx(attention, rel=1e-4)


@pytest.mark.parametrize("reduce", REDUCED)
@pytest.mark.parametrize("element", ["vector", "element"])
@pytest.mark.parametrize("method", [Method.TAYLOR, Method.FISHER])
def test_taylor_and_fisher_are_their_formulas(
    world: World, method: Method, element: Literal["vector", "element"], reduce: Reduce
) -> None:
    gradients = world.gradients()
    change = {name: gradients.first[name].double() * weight.double()
              - (0.5 * weight.double() ** 2 * gradients.squared[name].double()
                 if method is Method.FISHER else 0)
              for name, weight in world.weights.items()}

    def amount(part: Tensor) -> float:
        numbers: list[float] = part.flatten().tolist()
        return abs(sum(numbers)) if element == "vector" else sum(abs(n) for n in numbers)

    found = world.importance(Criterion(method=method, element=element, reduce=reduce), gradients)
    for channel, importance in enumerate(found.channels):
        parts = [amount(part) for part in _parts_of_channel(channel, change)]
        assert importance == pytest.approx(REDUCED[reduce](parts), rel=1e-3, abs=1e-7)
    for head, importance in enumerate(found.heads):
        parts = [share * amount(part) for part, share in _parts_of_head(world, head, change)]
        assert importance == pytest.approx(REDUCED[reduce](parts), rel=1e-3, abs=1e-7)


def test_taylor_is_the_slope_of_the_loss_as_a_structure_fades(world: World) -> None:
    criterion = Criterion(method=Method.TAYLOR, element="vector", reduce="last")
    found = world.importance(criterion, world.gradients())
    step = 1e-4

    def slope(name: str, columns: slice) -> float:
        def fade(by: float) -> Callable[[dict[str, Tensor]], None]:
            def change(weights: dict[str, Tensor]) -> None:
                weights[name][:, columns] *= 1 - by

            return change

        return (world.loss(fade(step)) - world.loss(fade(-step))) / (2 * step)

    for channel in (0, 17, 95):
        expected = slope("mlp.down_proj.weight", slice(channel, channel + 1))
        assert found.channels[channel] == pytest.approx(abs(expected), rel=1e-2, abs=1e-5)
    for head in range(world.shape.num_attention_heads):
        expected = slope("self_attn.o_proj.weight", world.rows(head))
        assert found.heads[head] == pytest.approx(abs(expected), rel=1e-2, abs=1e-5)


def test_a_bias_is_cut_with_its_row(tmp_path: Path) -> None:
    world = World(make_tiny(tmp_path, "gqa-tied", attention_bias=True, mlp_bias=True))
    found = world.importance(Criterion(method=Method.MAGNITUDE))
    rows = _parts_of_channel(5, world.weights)
    biases = [world.weights[f"mlp.{name}_proj.bias"][5] for name in ("gate", "up")]
    assert found.channels[5] == pytest.approx(
        sum(float(part.norm()) ** 2 for part in [*rows, *biases]), rel=1e-4)
    rows = [part.mul(share**0.5) for part, share in _parts_of_head(world, 3, world.weights)]
    biases = [world.weights["self_attn.q_proj.bias"][world.rows(3)],
              *(world.weights[f"self_attn.{name}_proj.bias"][world.rows(1)] / 2**0.5
                for name in "kv")]
    assert found.heads[3] == pytest.approx(
        sum(float(part.norm()) ** 2 for part in [*rows, *biases]), rel=1e-4)


def test_wanda_is_the_sum_of_squared_weights_times_squared_norms_of_inputs(world: World) -> None:
    found = world.importance(Criterion(method=Method.WANDA))
    down, out = world.weights["mlp.down_proj.weight"], world.weights["self_attn.o_proj.weight"]

    def column(weight: Tensor, inputs: Tensor, j: int) -> float:
        norm = float(inputs[:, j].norm())
        return sum((abs(float(w)) * norm) ** 2 for w in weight[:, j])

    for channel in range(0, world.shape.intermediate_size, 7):
        expected = column(down, world.channels, channel)
        assert found.channels[channel] == pytest.approx(expected, rel=1e-4)
    for head, importance in enumerate(found.heads):
        its = world.rows(head)
        expected = sum(column(out, world.heads, j) for j in range(its.start, its.stop))
        assert importance == pytest.approx(expected, rel=1e-4)


def test_energy_is_the_error_that_removing_one_makes(world: World) -> None:
    found = world.importance(Criterion(method=Method.ENERGY))
    for channel in range(0, world.shape.intermediate_size, 7):
        its = world.weights["mlp.down_proj.weight"][:, channel]
        error = torch.outer(world.channels[:, channel], its).pow(2).sum()
        assert found.channels[channel] == pytest.approx(float(error), rel=1e-3)
    for head, importance in enumerate(found.heads):
        columns = world.rows(head)
        its = world.weights["self_attn.o_proj.weight"][:, columns]
        error = (world.heads[:, columns] @ its.T).pow(2).sum()
        assert importance == pytest.approx(float(error), rel=1e-3)


def test_fluctuation_is_the_variance_of_the_input_times_the_squared_norm_of_its_column(
    world: World
) -> None:
    found = world.importance(Criterion(method=Method.FLUCTUATION))
    variance = np.var(world.channels.double().numpy(), axis=0, ddof=1)
    weight = world.weights["mlp.down_proj.weight"].double().numpy()
    expected = [variance[j] * np.linalg.norm(weight[:, j]) ** 2 for j in range(len(variance))]
    assert found.channels == pytest.approx(expected, rel=1e-3)
    variance = np.var(world.heads.double().numpy(), axis=0, ddof=1)
    weight = world.weights["self_attn.o_proj.weight"].double().numpy()
    for head, importance in enumerate(found.heads):
        its = world.rows(head)
        total = sum(variance[j] * np.linalg.norm(weight[:, j]) ** 2
                    for j in range(its.start, its.stop))
        assert importance == pytest.approx(total, rel=1e-3)


def test_an_input_that_never_changes_fluctuates_by_nothing(world: World) -> None:
    constant = world.statistics._replace(
        channels=7 * torch.full_like(world.statistics.channels, 0.1**2),
        channels_mean=torch.full_like(world.statistics.channels_mean, 0.1), n_tokens=7)
    found = layer_importance(Criterion(method=Method.FLUCTUATION), world.weights, world.shape,
                             constant, None, LAYER)
    assert all(0 <= importance < 1e-6 for importance in found.channels)


def test_obs_ranks_by_the_order_of_elimination(world: World) -> None:
    found = world.importance(Criterion(method=Method.OBS))
    for numbers, name, moments, width in (
        (found.heads, "self_attn.o_proj.weight", world.statistics.heads, world.shape.head_dim),
        (found.channels, "mlp.down_proj.weight", world.statistics.channels, 1),
    ):
        order = elimination_order(world.weights[name], moments, width).tolist()
        assert sorted(range(len(numbers)), key=numbers.__getitem__) == order
        assert sorted(numbers) == list(range(len(numbers)))


def test_random_is_the_same_for_a_seed_and_differs_between_seeds_and_layers(world: World) -> None:
    one = Criterion(method=Method.RANDOM, seed=1)
    first = world.importance(one, layer=2)
    assert world.importance(one, layer=2) == first
    others = [world.importance(one, layer=1),
              world.importance(Criterion(method=Method.RANDOM, seed=2), layer=1),
              world.importance(Criterion(method=Method.RANDOM, seed=2), layer=2)]
    assert len({first, *others}) == 4


@pytest.mark.parametrize("method", Method)
def test_what_a_method_needs_must_be_given_and_nothing_else(world: World, method: Method) -> None:
    criterion = Criterion(method=method)
    assert not (criterion.needs_gradients and criterion.needs_statistics)
    if criterion.needs_gradients or criterion.needs_statistics:
        what = "gradients" if criterion.needs_gradients else "statistics"
        with pytest.raises(ValueError, match=f"{method} needs {what}"):
            layer_importance(criterion, world.weights, world.shape, None, None, LAYER)
    else:
        layer_importance(criterion, world.weights, world.shape, None, None, LAYER)


def test_unknown_ways_are_refused() -> None:
    with pytest.raises(ValidationError):
        Criterion.model_validate({"method": "taylor", "reduce": "median"})
