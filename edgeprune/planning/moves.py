"""Moves: the steps that a plan is made of. Pure.

In: a shape and the cuts so far. Out: the moves that are still possible, and the cuts after each.
"""

from __future__ import annotations

from enum import StrEnum

from edgeprune.model.cuts import Cuts
from edgeprune.model.shape import LlamaShape
from edgeprune.records import Record


class Kind(StrEnum):
    """What one move removes."""

    LAYER = "layer"
    KV_GROUP = "KV group"
    QUERY_HEAD = "query head"


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
        layers = tuple(sorted({*cuts.layers, int(self.layer or 0)}))
        return cuts.model_copy(update={"layers": layers})

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
