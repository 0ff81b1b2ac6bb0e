"""Moves: the steps that a plan is made of. Pure.

In: a shape and the cuts so far. Out: the moves that are still possible, the moves that can be taken
back, and the cuts after each.

A move goes to the next width that is served (`edgeprune.planning.widths`), so it may have to drop
several heads at once: dropping one would save nothing where the row it shortens is rounded up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from enum import StrEnum

from pydantic import Field

from edgeprune.model.cuts import Cuts
from edgeprune.model.shape import Shape
from edgeprune.planning.widths import (
    fewest_layers,
    ffn_reason,
    heads_reason,
    layer_blocks,
    served_ffn,
    served_heads,
    widths_of,
)
from edgeprune.records import Record


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
        layer: The layer that goes, by its original number, or the first of several.
        count: Layers that go, one after another; KV groups that go from every layer; query heads
            that go from every group.
        channels: FFN channels that go from every layer.
    """

    kind: Kind
    layer: int | None = None
    count: int = Field(default=1, ge=1)
    channels: int = Field(default=0, ge=0)

    def after(self, cuts: Cuts) -> Cuts:
        """Return `cuts` with this move added."""
        return self._changed(cuts, 1)

    def before(self, cuts: Cuts) -> Cuts:
        """Return `cuts` with this move taken back."""
        return self._changed(cuts, -1)

    def _changed(self, cuts: Cuts, sign: int) -> Cuts:
        if self.kind is Kind.KV_GROUP:
            return cuts.model_copy(update={"kv_groups": cuts.kv_groups + sign * self.count})
        if self.kind is Kind.QUERY_HEAD:
            return cuts.model_copy(update={"query_heads": cuts.query_heads + sign * self.count})
        if self.kind is Kind.FFN:
            return cuts.model_copy(update={
                "ffn_channels": cuts.ffn_channels + sign * self.channels})
        mine = set(self._layers)
        layers = {*cuts.layers} | mine if sign > 0 else {*cuts.layers} - mine
        return cuts.model_copy(update={"layers": tuple(sorted(layers))})

    @property
    def _layers(self) -> range:
        return range(self.layer or 0, (self.layer or 0) + self.count)

    def describe(self) -> str:
        """Return the move in words."""
        return {
            Kind.LAYER: " ".join(("drop", *_named(self._layers))),
            Kind.KV_GROUP: f"drop {_counted(self.count, 'KV group')} from every layer",
            Kind.QUERY_HEAD: f"drop {_counted(self.count, 'query head')} from every KV group",
            Kind.FFN: f"narrow every FFN by {self.channels} channels",
        }[self.kind]


def moves(
    base: Shape, cuts: Cuts, protected: Collection[int] = frozenset()
) -> list[Move]:
    """Return every move that leaves enough layers, the protected ones too, and served widths."""
    left = widths_of(base, cuts)
    spare = base.num_hidden_layers - len(cuts.layers) - fewest_layers(base)
    found = [Move(kind=Kind.LAYER, layer=block[0], count=len(block))
             for block in layer_blocks(base)
             if len(block) <= spare and not any(i in cuts.layers or i in protected for i in block)]
    pairs = served_heads(base)
    if fewer := [g for g, q in pairs if q == left.queries and g < left.groups]:
        found.append(Move(kind=Kind.KV_GROUP, count=left.groups - max(fewer)))
    if fewer := [q for g, q in pairs if g == left.groups and q < left.queries]:
        found.append(Move(kind=Kind.QUERY_HEAD, count=left.queries - max(fewer)))
    if fewer := [width for width in served_ffn(base) if width < left.ffn]:
        found.append(Move(kind=Kind.FFN, channels=left.ffn - max(fewer)))
    return found


def moves_back(base: Shape, cuts: Cuts) -> list[Move]:
    """Return every move that can be taken back from `cuts` with `Move.before`."""
    left = widths_of(base, cuts)
    found = [Move(kind=Kind.LAYER, layer=block[0], count=len(block))
             for block in layer_blocks(base) if set(block) <= set(cuts.layers)]
    pairs = served_heads(base)
    if more := [g for g, q in pairs if q == left.queries and g > left.groups]:
        found.append(Move(kind=Kind.KV_GROUP, count=min(more) - left.groups))
    if more := [q for g, q in pairs if g == left.groups and q > left.queries]:
        found.append(Move(kind=Kind.QUERY_HEAD, count=min(more) - left.queries))
    if more := [width for width in served_ffn(base) if width > left.ffn]:
        found.append(Move(kind=Kind.FFN, channels=min(more) - left.ffn))
    return found


def why_width(base: Shape, old: Cuts, new: Cuts) -> str:
    """Say why the widths of `new` that differ from those of `old` are offered; may be empty."""
    left, reasons = widths_of(base, new), []
    if (old.kv_groups, old.query_heads) != (new.kv_groups, new.query_heads):
        reasons.append(heads_reason(base, left.groups, left.queries))
    if old.ffn_channels != new.ffn_channels:
        reasons.append(ffn_reason(base, left.ffn))
    return "; ".join(reasons)


def describe_change(old: Cuts, new: Cuts) -> str:
    """Return in words how one plan's cuts differ from another's.

    For example `swap: layer 12 back, layer 25 dropped`; `undo` where something only comes back,
    `cut` where something only goes.
    """
    back = [f"{some} back" for some in _named(set(old.layers) - set(new.layers))]
    gone = [f"{some} dropped" for some in _named(set(new.layers) - set(old.layers))]
    for name, thing, where in (("kv_groups", "KV group", "in every layer"),
                               ("query_heads", "query head", "in every KV group"),
                               ("ffn_channels", "FFN channel", "in every layer"),
                               ("hidden_channels", "hidden channel", "in the model"),
                               ("components", "principal component", "in the hidden states")):
        change = getattr(new, name) - getattr(old, name)
        if change < 0:
            back.append(f"{_counted(-change, thing)} back {where}")
        if change > 0:
            gone.append(f"{_counted(change, thing)} dropped {where}")
    verb = "swap" if back and gone else "undo" if back else "cut"
    return f"{verb}: {', '.join([*back, *gone])}"


def _named(numbers: Iterable[int]) -> list[str]:
    """Name layers: nothing for none."""
    ordered = sorted(numbers)
    if not ordered:
        return []
    return [f"layer{'s' if len(ordered) > 1 else ''} {' '.join(map(str, ordered))}"]


def _counted(count: int, thing: str) -> str:
    return f"one {thing}" if count == 1 else f"{count} {thing}s"
