"""Cuts: what is removed from a Llama so that a stock Llama remains. Pure, no torch.

In: a shape and cuts. Out: the shape that is left, and which layers, heads and channels stay.

All layers keep the same number of heads and FFN channels; each chooses which. Whole KV groups go
with their query heads, or the same number of query heads goes from every group, so that
`num_attention_heads` stays a multiple of `num_key_value_heads`. Hidden channels, which all layers
read and write, are chosen once for the model; or the model is turned to principal components, and
the least of those go.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import Field

from edgeprune.model.shape import Shape
from edgeprune.records import Record


class Cuts(Record):
    """All that is removed from a model.

    Attributes:
        layers: Removed layers by their original number, ascending.
        kv_groups: KV groups removed from every layer, each with its query heads.
        query_heads: Query heads removed from every group that stays.
        ffn_channels: FFN channels removed from every layer.
        hidden_channels: Channels of the hidden states removed from the model.
        components: Principal components of the hidden states removed, the least ones. Embedding and
            output head, turned to components each in its own way, are tied no more.
    """

    layers: tuple[int, ...] = ()
    kv_groups: int = Field(default=0, ge=0)
    query_heads: int = Field(default=0, ge=0)
    ffn_channels: int = Field(default=0, ge=0)
    hidden_channels: int = Field(default=0, ge=0)
    components: int = Field(default=0, ge=0)

    def shape(self, base: Shape) -> Shape:
        """Return the shape that is left of `base`."""
        groups = base.num_key_value_heads - self.kv_groups
        layers = kept_layers(base, self)
        return base.replace(
            num_hidden_layers=base.num_hidden_layers - len(self.layers),
            num_key_value_heads=groups,
            num_attention_heads=groups * (base.queries_per_group - self.query_heads),
            intermediate_size=base.intermediate_size - self.ffn_channels,
            hidden_size=base.hidden_size - self.hidden_channels - self.components,
            tie_word_embeddings=base.tie_word_embeddings and not self.components,
            **{name: tuple(number for number, layer in enumerate(layers) if layer in some)
               for name, some in (("local_layers", base.local_layers),
                                  ("unrotated_layers", base.unrotated_layers))},
        )

    @property
    def narrows_layers(self) -> bool:
        """True when layers lose heads or FFN channels, and so must choose."""
        return max(self.kv_groups, self.query_heads, self.ffn_channels) > 0


class Kept(Record):
    """What a layer keeps, by original numbers, ascending."""

    kv_heads: tuple[int, ...]
    query_heads: tuple[int, ...]
    ffn_channels: tuple[int, ...]


class LayerImportance(Record):
    """How much each query head and each FFN channel of one layer matters.

    Attributes:
        heads: `(num_attention_heads,)`; a KV group's importance is the sum of its heads'.
        channels: `(intermediate_size,)`.
    """

    heads: tuple[float, ...]
    channels: tuple[float, ...]


def kept_in_layer(base: Shape, importance: LayerImportance, cuts: Cuts) -> Kept:
    """Choose what one layer keeps: the most important heads and channels; of equals the first."""
    size = base.queries_per_group
    members = [range(g * size, (g + 1) * size) for g in range(base.num_key_value_heads)]
    weight = [sum(importance.heads[h] for h in group) for group in members]
    groups = _best(weight, range(len(members)), len(members) - cuts.kv_groups)
    queries = [h for group in groups
               for h in _best(importance.heads, members[group], size - cuts.query_heads)]
    channels = _best(importance.channels, range(base.intermediate_size),
                     base.intermediate_size - cuts.ffn_channels)
    return Kept(kv_heads=tuple(groups), query_heads=tuple(queries), ffn_channels=tuple(channels))


def kept_hidden(importance: Sequence[float], cuts: Cuts) -> tuple[int, ...]:
    """Choose which hidden channels the model keeps: the most important; of equals the first."""
    return tuple(_best(importance, range(len(importance)), len(importance) - cuts.hidden_channels))


def _best(importance: Sequence[float], candidates: Iterable[int], count: int) -> list[int]:
    """Return the `count` most important candidates, ascending."""
    return sorted(sorted(candidates, key=lambda i: -importance[i])[:count])


def kept_layers(base: Shape, cuts: Cuts) -> list[int]:
    """Return the original numbers of the layers that stay, ascending."""
    return [i for i in range(base.num_hidden_layers) if i not in cuts.layers]
