"""Cuts: what is removed from a Llama so that a stock Llama remains. Pure, no torch.

In: a shape and cuts. Out: the shape that is left, and which layers and heads stay.

All layers keep the same number of heads; each chooses which. Whole KV groups go with their query
heads, or the same number of query heads goes from every group, so that `num_attention_heads` stays
a multiple of `num_key_value_heads`.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from edgeprune.model.shape import LlamaShape
from edgeprune.records import Record


class Cuts(Record):
    """All that is removed from a model.

    Attributes:
        layers: Removed layers by their original number, ascending.
        kv_groups: KV groups removed from every layer, each with its query heads.
        query_heads: Query heads removed from every group that stays.
    """

    layers: tuple[int, ...] = ()
    kv_groups: int = Field(default=0, ge=0)
    query_heads: int = Field(default=0, ge=0)

    def shape(self, base: LlamaShape) -> LlamaShape:
        """Return the shape that is left of `base`."""
        groups = base.num_key_value_heads - self.kv_groups
        return base.replace(
            num_hidden_layers=base.num_hidden_layers - len(self.layers),
            num_key_value_heads=groups,
            num_attention_heads=groups * (base.queries_per_group - self.query_heads),
        )

    @property
    def cuts_heads(self) -> bool:
        """True when layers lose heads."""
        return self.kv_groups > 0 or self.query_heads > 0


class LayerHeads(Record):
    """The heads that a layer keeps, by their original numbers, ascending."""

    kv_heads: tuple[int, ...]
    query_heads: tuple[int, ...]


def kept_heads(base: LlamaShape, importance: Sequence[float], cuts: Cuts) -> LayerHeads:
    """Choose the heads that one layer keeps: the most important ones; of equals the first.

    Args:
        base: The unpruned shape.
        importance: Of each query head, `(num_attention_heads,)`; a group's is their sum.
        cuts: What is removed.
    """
    size = base.queries_per_group
    members = [range(g * size, (g + 1) * size) for g in range(base.num_key_value_heads)]
    weight = [sum(importance[h] for h in group) for group in members]
    n_groups = base.num_key_value_heads - cuts.kv_groups
    groups = sorted(sorted(range(len(members)), key=lambda g: -weight[g])[:n_groups])
    queries = []
    for group in groups:
        best = sorted(members[group], key=lambda h: -importance[h])[: size - cuts.query_heads]
        queries += sorted(best)
    return LayerHeads(kv_heads=tuple(groups), query_heads=tuple(queries))


def kept_layers(base: LlamaShape, cuts: Cuts) -> list[int]:
    """Return the original numbers of the layers that stay, ascending."""
    return [i for i in range(base.num_hidden_layers) if i not in cuts.layers]
