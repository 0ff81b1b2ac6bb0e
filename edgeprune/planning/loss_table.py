"""Losses as a table: what each cut loses, as if losses added up. Pure.

In: losses that a scorer told. Out: a `LossTable`, which estimates the loss after any cuts, and on
which the greedy and the exact planner can be compared.

A Llama's losses do not add up, least of all for neighbouring layers. The table is the planner's
guess of where to look; what it proposes is scored before it is believed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from statistics import median

from edgeprune.model.cuts import Cuts
from edgeprune.model.shape import Shape
from edgeprune.planning.widths import fewest_layers, layer_blocks, served_ffn, served_heads
from edgeprune.records import Record

Score = Callable[[Sequence[Cuts]], Sequence[float]]
# A layer is protected that alone loses as many nats, and so many times what the median layer does.
CATASTROPHE, OUTLIER = 1.0, 10.0
# The widths of `Cuts`, each with a table of its own.
FIELDS = ("kv_groups", "query_heads", "ffn_channels")


class LossTable(Record):
    """The loss that each cut adds, in nats per token.

    Usable as a `Score`.

    Attributes:
        base_loss: Loss of the unpruned model.
        layers: By the original number of a dropped layer.
        kv_groups: By how many KV groups every layer lost.
        query_heads: By how many query heads every group lost.
        ffn_channels: By how many FFN channels every layer lost.
    """

    base_loss: float
    layers: dict[int, float]
    kv_groups: dict[int, float]
    query_heads: dict[int, float]
    ffn_channels: dict[int, float]

    def loss(self, cuts: Cuts) -> float:
        """Return the loss after cuts.

        Raises:
            KeyError: Cuts that the table does not list.
        """
        return self.base_loss + sum(self.layers[i] for i in cuts.layers) + sum(
            self.levels(field)[getattr(cuts, field)] for field in FIELDS)

    def levels(self, field: str) -> Mapping[int, float]:
        """Return the losses of one of `FIELDS`, by how many are removed."""
        levels: dict[int, float] = getattr(self, field)
        return levels

    def __call__(self, candidates: Sequence[Cuts]) -> list[float]:
        """Return the loss after each of the cuts."""
        return [self.loss(cuts) for cuts in candidates]


class Scores:
    """A scorer that remembers: nothing is scored twice.

    Attributes:
        seen: The losses that were told, in the order of asking.
    """

    def __init__(self, score: Score) -> None:
        """Wrap a scorer."""
        self._score = score
        self.seen: dict[Cuts, float] = {}

    def __call__(self, candidates: Sequence[Cuts]) -> list[float]:
        """Return the loss after each of the cuts."""
        new = list(dict.fromkeys(cuts for cuts in candidates if cuts not in self.seen))
        if new:
            self.seen.update(zip(new, self._score(new), strict=True))
        return [self.seen[cuts] for cuts in candidates]


class Estimate:
    """A table that is learnt: the latest known loss of every layer and every width.

    What is not known of a width is bounded from below by the next wider one that is known: losses
    are taken to grow with what is removed.
    """

    def __init__(self, base: Shape, base_loss: float) -> None:
        """Start with the loss of the unpruned model."""
        self._base_loss = base_loss
        self.layers: dict[int, float] = {}
        self.protected: frozenset[int] = frozenset()
        blocks = layer_blocks(base)
        self._most_protected = (
            sum(map(len, blocks)) - (base.num_hidden_layers - fewest_layers(base)))
        pairs = served_heads(base)
        removed = {
            "kv_groups": {base.num_key_value_heads - g for g, _ in pairs},
            "query_heads": {base.queries_per_group - q for _, q in pairs},
            "ffn_channels": {base.intermediate_size - width for width in served_ffn(base)},
        }
        self._ladder = {field: sorted(removed[field]) for field in FIELDS}
        self._levels = {field: {0: 0.0} for field in FIELDS}

    def protect(self) -> None:
        """Protect the layers whose loss so far is a catastrophe: those of the first scan.

        What a model needs to work at all (the first layers of a Llama) is not to go because its
        loss is lost among those of other cuts. They are the worst layers, and at most as many as
        stay in any plan: where losses add up, the best plan is one without them. Layers that go
        together share their loss.
        """
        if self.layers:
            bound = max(CATASTROPHE, OUTLIER * median(self.layers.values()))
            worst = sorted(self.layers, key=lambda layer: -self.layers[layer])
            self.protected = frozenset(
                layer for layer in worst[: self._most_protected] if self.layers[layer] > bound)

    def knows(self, field: str, removed: int) -> bool:
        """Tell whether the loss of a width was seen."""
        return removed in self._levels[field]

    def level(self, field: str, removed: int) -> float:
        """Return the loss of a width, or its lower bound."""
        levels = self._levels[field]
        return levels[max(known for known in levels if known <= removed)]

    def loss(self, cuts: Cuts) -> float:
        """Return the estimated loss after cuts; layers never seen count nothing."""
        return self._base_loss + sum(self.layers.get(i, 0.0) for i in cuts.layers) + sum(
            self.level(field, getattr(cuts, field)) for field in FIELDS)

    def probe(self, field: str, removed: int) -> int:
        """Return the width to score next when the loss of `removed` is wanted.

        The middle of what is unknown up to there: when losing that much is already too much, all
        narrower widths are settled with it.
        """
        ladder = self._ladder[field]
        wanted = bisect_left(ladder, removed)
        known = max(i for i in range(wanted + 1) if ladder[i] in self._levels[field])
        return ladder[(known + wanted + 1) // 2]

    def learn(self, old: Cuts, new: Cuts, change: float) -> float:
        """Take in what the step from one set of cuts to another did to the loss.

        What the estimate missed goes to the parts of the step that were never seen, in equal
        shares; when all were, to all of them (the smallest correction that explains the step).

        Args:
            old: The cuts before.
            new: The cuts after.
            change: The loss after less the loss before.

        Returns:
            What the estimate missed.
        """
        missed = change - (self.loss(new) - self.loss(old))
        parts = [("layer", i, 1.0 if i in new.layers else -1.0)
                 for i in sorted(set(old.layers) ^ set(new.layers))]
        for field in FIELDS:
            before, after = getattr(old, field), getattr(new, field)
            if before != after:
                # the wider of the two keeps its loss, unless only the narrower is known
                anchored = after == 0 or (self.knows(field, after)
                                          and not self.knows(field, before))
                parts.append((field, before, -1.0) if anchored else (field, after, 1.0))
        unseen = [part for part in parts if not self._seen(part[0], part[1])]
        chosen = unseen or parts
        for name, number, sign in chosen:
            self._add(name, number, sign * missed / len(chosen))
        return missed

    def table(self) -> LossTable:
        """Return the losses that are known, and widths between and beyond them by straight lines.

        Of a field of which only the unpruned width is known, no others are listed.
        """
        return LossTable(base_loss=self._base_loss, layers=dict(sorted(self.layers.items())), **{
            field: _straight_lines(self._levels[field], self._ladder[field]) for field in FIELDS
        })

    def _seen(self, name: str, number: int) -> bool:
        return number in self.layers if name == "layer" else self.knows(name, number)

    def _add(self, name: str, number: int, correction: float) -> None:
        if name == "layer":
            self.layers[number] = self.layers.get(number, 0.0) + correction
        else:
            self._levels[name][number] = self.level(name, number) + correction


def _straight_lines(known: Mapping[int, float], ladder: Sequence[int]) -> dict[int, float]:
    """Return the losses of all widths of a ladder, which never fall beyond the last known one."""
    points = sorted(known)
    if len(points) == 1:
        return dict(known)
    found = {}
    for removed in ladder:
        right = max(1, min(bisect_left(points, removed), len(points) - 1))
        a, b = points[right - 1], points[right]
        slope = (known[b] - known[a]) / (b - a)
        if removed > b:
            slope = max(0.0, slope)
        found[removed] = known.get(removed, known[b] + slope * (removed - b))
    return found
