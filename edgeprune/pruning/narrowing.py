"""One layer narrowed and repaired by itself, to score candidate cuts quickly.

In: importance, statistics of the unpruned model. Out: weights of a layer at any widths. What a
finished plan gets (`edgeprune.pruning.compress`) follows the pruned model's own activations and
takes a pass over all layers; this is for scoring, where the same layer at the same widths comes
again and again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from edgeprune.model.cuts import Cuts, LayerImportance, kept_hidden, kept_in_layer
from edgeprune.model.shape import Shape
from edgeprune.model.tensors import layer_specs
from edgeprune.pruning.forward import Weights
from edgeprune.pruning.repair import NormalEquations
from edgeprune.pruning.statistics import read_statistics
from edgeprune.pruning.surgery import columns_of, keep_hidden, slice_layer

KEPT_BYTES = 2 * 1024**3
DAMPING = 0.03


class Narrowing:
    """Narrows layers; remembers the projections that it fitted while they are small."""

    def __init__(
        self, shape: Shape, importance: Callable[[int], LayerImportance],
        hidden: Callable[[], Sequence[float]], statistics: Callable[[], Path] | None,
    ) -> None:
        """Prepare.

        Args:
            shape: Of the unpruned model.
            importance: Tells that of a layer; asked only when one is narrowed.
            hidden: Tells that of the hidden channels; asked only when some go.
            statistics: Tells the directory of its statistics, likewise; None does without repair.
        """
        self._shape, self._importance, self._statistics = shape, importance, statistics
        self._hidden = hidden
        self._fitted: dict[tuple[int, str, tuple[int, ...]], Tensor] = {}
        self._bytes = 0

    def __call__(self, layer: int, weights: Weights, cuts: Cuts) -> Weights:
        """Return the weights of a layer after the cuts within it."""
        if cuts.narrows_layers:
            weights = self._narrowed(layer, weights, cuts)
        hidden = self.hidden(cuts)
        return {spec.within: keep_hidden(weights[spec.within], spec, hidden)
                for spec in layer_specs(self._shape, layer)}

    def hidden(self, cuts: Cuts) -> tuple[int, ...] | None:
        """Return the hidden channels that the model keeps after cuts; None when that is all."""
        if not cuts.hidden_channels:
            return None
        return kept_hidden(self._hidden(), cuts)

    def _narrowed(self, layer: int, weights: Weights, cuts: Cuts) -> Weights:
        kept = kept_in_layer(self._shape, self._importance(layer), cuts)
        narrowed = slice_layer(weights, self._shape, kept)
        for name, moments, units, width in (
            ("self_attn.o_proj.weight", "heads", kept.query_heads, self._shape.head_dim),
            ("mlp.down_proj.weight", "channels", kept.ffn_channels, 1),
        ):
            if self._statistics is not None and len(units) * width < weights[name].shape[1]:
                narrowed[name] = self._repaired(layer, weights[name], moments, units, width,
                                                self._statistics())
        return narrowed

    def _repaired(
        self, layer: int, weight: Tensor, moments: str, units: tuple[int, ...], width: int,
        statistics: Path,
    ) -> Tensor:
        """Return the columns of a projection that stay, fitted to put out what all of them do."""
        key = layer, moments, units
        if key in self._fitted:
            return self._fitted[key]
        gram: Tensor = getattr(read_statistics(statistics, layer), moments).to(weight.device)
        columns, whole = columns_of(units, width).to(weight.device), weight.float()
        equations = NormalEquations(gram[columns][:, columns], whole @ gram[:, columns])
        fitted = equations.solve(whole[:, columns], DAMPING).to(weight.dtype)
        if self._bytes + fitted.nbytes <= KEPT_BYTES:
            self._fitted[key] = fitted
            self._bytes += fitted.nbytes
        return fitted
