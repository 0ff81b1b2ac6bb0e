"""Moves: the steps that a plan is made of. Pure.

In: a shape and the cuts so far. Out: the moves that are still possible, and the cuts after each.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from edgeprune.model.cuts import Cuts
from edgeprune.model.quantization import K_QUANT_BLOCK
from edgeprune.model.shape import LlamaShape
from edgeprune.records import Record

# The rows of down_proj are the FFN's width: where they are no whole number of K-quant blocks, its
# type falls back to one that is larger and slower.
FFN_STEP = K_QUANT_BLOCK


class Kind(StrEnum):
    """What one move removes."""

    LAYER = "layer"
    KV_GROUP = "KV group"
    QUERY_HEAD = "query head"
    FFN = "FFN"


class Move(Record):
    """One step of the planner.

    Attributes:
        kind: What is removed.
        layer: The layer that goes, by its original number.
        channels: FFN channels that go from every layer.
    """

    kind: Kind
    layer: int | None = None
    channels: int = Field(default=0, ge=0)

    def after(self, cuts: Cuts) -> Cuts:
        """Return `cuts` with this move added."""
        if self.kind is Kind.KV_GROUP:
            return cuts.model_copy(update={"kv_groups": cuts.kv_groups + 1})
        if self.kind is Kind.QUERY_HEAD:
            return cuts.model_copy(update={"query_heads": cuts.query_heads + 1})
        if self.kind is Kind.FFN:
            return cuts.model_copy(update={"ffn_channels": cuts.ffn_channels + self.channels})
        layers = tuple(sorted({*cuts.layers, int(self.layer or 0)}))
        return cuts.model_copy(update={"layers": layers})

    def describe(self) -> str:
        """Return the move in words."""
        return {
            Kind.LAYER: f"drop layer {self.layer}",
            Kind.KV_GROUP: "drop one KV group from every layer",
            Kind.QUERY_HEAD: "drop one query head from every KV group",
            Kind.FFN: f"narrow every FFN by {self.channels} channels",
        }[self.kind]


def moves(base: LlamaShape, cuts: Cuts) -> list[Move]:
    """Return every move that leaves at least one layer, one head, and an FFN of one step."""
    left = cuts.shape(base)
    found = []
    if left.num_hidden_layers > 1:
        found += [Move(kind=Kind.LAYER, layer=i) for i in range(base.num_hidden_layers)
                  if i not in cuts.layers]
    if left.num_key_value_heads > 1:
        found.append(Move(kind=Kind.KV_GROUP))
    if left.queries_per_group > 1:
        found.append(Move(kind=Kind.QUERY_HEAD))
    if left.intermediate_size > FFN_STEP:
        # the first step ends at a multiple
        channels = left.intermediate_size % FFN_STEP or FFN_STEP
        found.append(Move(kind=Kind.FFN, channels=channels))
    return found


def smallest(base: LlamaShape) -> LlamaShape:
    """Return the smallest shape that moves reach."""
    return base.replace(num_hidden_layers=1, num_key_value_heads=1, num_attention_heads=1,
                        intermediate_size=min(base.intermediate_size, FFN_STEP))
