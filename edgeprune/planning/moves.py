"""Cuts and moves: what may be removed from a Llama so that a stock Llama remains. Pure.

In: a shape. Out: the moves that are possible after some cuts, the shape that cuts leave, and which
heads each layer keeps.

All layers keep the same number of heads; each chooses which. Whole KV groups go with their query
heads, or the same number of query heads goes from every group, so that `num_attention_heads` stays a
multiple of `num_key_value_heads`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from pydantic import Field

from edgeprune.model.shape import LlamaShape
from edgeprune.records import Record


class Kind(StrEnum):
    """What one move removes."""

    LAYER = "layer"
    KV_GROUP = "KV group"
    QUERY_HEAD = "query head"


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


class Move(Record):
    """One step of the planner."""

    kind: Kind
    layer: int | None = None

    def after(self, cuts: Cuts) -> Cuts:
        """Return `cuts` with this move added."""
        if self.kind is Kind.KV_GROUP:
            return cuts.model_copy(update={"kv_groups": cuts.kv_groups + 1})
        if self.kind is Kind.QUERY_HEAD:
            return cuts.model_copy(update={"query_heads": cuts.query_heads + 1})
        return cuts.model_copy(update={"layers": tuple(sorted({*cuts.layers, int(self.layer or 0)}))})

    def describe(self) -> str:
        """Return the move in words."""
        return {
            Kind.LAYER: f"drop layer {self.layer}",
            Kind.KV_GROUP: "drop one KV group from every layer",
            Kind.QUERY_HEAD: "drop one query head from every KV group",
        }[self.kind]


def moves(base: LlamaShape, cuts: Cuts) -> list[Move]:
    """Return every move that leaves at least one layer, one KV group and one query head in each."""
    left = cuts.shape(base)
    found = []
    if left.num_hidden_layers > 1:
        found += [Move(kind=Kind.LAYER, layer=i) for i in range(base.num_hidden_layers)
                  if i not in cuts.layers]
    if left.num_key_value_heads > 1:
        found.append(Move(kind=Kind.KV_GROUP))
    if left.queries_per_group > 1:
        found.append(Move(kind=Kind.QUERY_HEAD))
    return found


def smallest(base: LlamaShape) -> LlamaShape:
    """Return the smallest shape that moves reach."""
    return base.replace(num_hidden_layers=1, num_key_value_heads=1, num_attention_heads=1)


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
