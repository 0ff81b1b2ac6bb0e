"""Betters a plan after the greedy: undo, swap, and jumps to what the estimate calls best. Pure.

In: cuts that hold the goals or do not, the estimate that the greedy learnt, a scorer. Out: cuts
that hold them and lose no more, and in words what was changed.

Each pass proposes a batch, scores it, learns from it, and takes the best that is truly better:

- jumps: of all widths that are offered, with as many layers as hold the goals at each and the
  cheapest ones dropped, those of the least estimated loss;
- probes: where such a loss rests on a width never scored, that width alone. Its loss was taken for
  that of the next wider width, a lower bound, so nothing better is overlooked. Where losses do add
  up and grow with what is removed, this ends at the optimum, if the passes suffice;
- neighbours: one cut given back (undo), or exchanged for another (swap), best estimate first.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from edgeprune.model.cuts import Cuts
from edgeprune.planning.goals import Goals
from edgeprune.planning.loss_table import FIELDS, Estimate, Scores
from edgeprune.planning.moves import describe_change, moves, moves_back, why_width
from edgeprune.planning.widths import fewest_layers, layer_blocks, served_widths, widths_of

# A real score takes about a second. A batch shares the layers before its first difference, and all
# passes together score at most about as much as the greedy before them.
CANDIDATES = 12
PASSES = 8
PATIENCE = 2  # passes without success in a row; the first teaches where losses do not add up
JUMPS = 4  # of a batch: the estimate's favourites are alike, so a few tell whether it is right
FINALISTS = 8
TOLERANCE = 1e-9  # nats: a smaller difference is rounding


class State(NamedTuple):
    """Cuts and the true loss after them."""

    cuts: Cuts
    loss: float


class Refined(NamedTuple):
    """What refinement came to.

    Attributes:
        state: The best state that holds the goals.
        log: A line for people for each change.
        finalists: The best cuts of several widths, each with as many layers as the goals allow;
            those of `state` first, and of its widths one more.
    """

    state: State
    log: tuple[str, ...]
    finalists: tuple[Cuts, ...]


class _Jump(NamedTuple):
    """Cuts that hold the goals, with the loss that the estimate gives at least."""

    loss: float
    order: int
    cuts: Cuts


def refine(start: State, aim: Goals, estimate: Estimate, scores: Scores) -> Refined:
    """Return a state that holds the goals and loses the least that was found, and how.

    Args:
        start: Where the greedy ended. When it does not hold the goals, the estimate's best shape
            that does is begun from.
        aim: The goals; some shape holds them.
        estimate: What is known of losses; learns on.
        scores: The scorer.
    """
    search = _Search(aim, estimate, scores, start)
    if aim.excess(start.cuts) > 0:
        search.restart()
    for _ in range(PASSES):
        if not search.improve():
            break
    return Refined(search.state, tuple(search.log), tuple(search.finalists()))


class _Search:
    """One refinement: where it stands, and what it did."""

    def __init__(self, aim: Goals, estimate: Estimate, scores: Scores, state: State) -> None:
        self.state = state
        self.log: list[str] = []
        self._failures = 0
        self._aim, self._estimate, self._scores = aim, estimate, scores
        self._offered = {widths: widths.cuts(aim.base) for widths in served_widths(aim.base)}

    def restart(self) -> None:
        """Begin again from the best that holds the goals: seen, or proposed by the estimate."""
        self._score([jump.cuts for jump in self._jumps(float("inf"))[:JUMPS]])
        self._take(self._best_seen(float("inf")), "no move came nearer to the budget, begun again")

    def improve(self) -> bool:
        """Make one pass; tell whether another could find more."""
        jumps, probes = self._proposals()
        first = [*probes, *jumps]
        others = [cuts for cuts in self._neighbours() if cuts not in first]
        surprise = self._score([*first, *others][:CANDIDATES])
        best = self._best_seen(self.state.loss - TOLERANCE)
        if best != self.state:
            self._take(best)
            self._failures = 0
            return True
        self._failures += 1
        return bool(probes) or (surprise > TOLERANCE and self._failures < PATIENCE)

    def finalists(self) -> list[Cuts]:
        """Return the best cuts of all widths whose loss is known or can be told, best first.

        A finished model is repaired as none that is scored is. So scores tell less well what one
        kind of cut loses against another; nor which layers should go, since each place where some
        did is made up for by itself: of the best widths there are the two best ones.
        """
        told = [(jump.loss, jump.cuts) for jump in self._jumps(float("inf")) if all(
            self._estimate.knows(field, getattr(jump.cuts, field)) for field in FIELDS)]
        seen = [(loss, cuts) for cuts, loss in self._scores.seen.items() if self._holds(cuts)]
        base, best = self._aim.base, [self.state.cuts]
        more = {widths_of(base, self.state.cuts): 1}
        for _, cuts in sorted([*seen, *told], key=lambda pair: pair[0]):
            widths = widths_of(base, cuts)
            if cuts not in best and more.setdefault(widths, 1):
                best.append(cuts)
                more[widths] -= 1
        return best[:FINALISTS]

    def _best_seen(self, bound: float) -> State:
        """Return the best that holds the goals and loses less than `bound`, else where we are.

        Of all that was ever scored: the greedy may have passed it by.
        """
        held = [State(cuts, loss) for cuts, loss in self._scores.seen.items()
                if loss < bound and self._holds(cuts)]
        return min(held, key=lambda state: state.loss, default=self.state)

    def _holds(self, cuts: Cuts) -> bool:
        # a probe may have a number of heads that is not offered
        offered = widths_of(self._aim.base, cuts) in self._offered
        return offered and self._aim.excess(cuts) == 0

    def _take(self, state: State, why: str = "") -> None:
        old, new = self.state.cuts, state.cuts
        change = f"{describe_change(old, new)}: loss {state.loss - self.state.loss:+.4f}"
        reason = why_width(self._aim.base, old, new)
        self.log.append("; ".join(part for part in (why, change, reason) if part))
        self.state = state

    def _score(self, batch: Sequence[Cuts]) -> float:
        """Score and learn; return by how much the estimate was wrong at most."""
        here = self.state
        missed = [self._estimate.learn(here.cuts, cuts, loss - here.loss)
                  for cuts, loss in zip(batch, self._scores(batch), strict=True)]
        return max(map(abs, missed), default=0.0)

    def _proposals(self) -> tuple[list[Cuts], list[Cuts]]:
        """Return jumps whose loss can be told, and probes for those whose cannot."""
        jumps, probes = list[Cuts](), dict[Cuts, None]()
        for jump in self._jumps(self.state.loss - TOLERANCE):
            if len(jumps) + len(probes) >= CANDIDATES:
                break
            removed = {field: getattr(jump.cuts, field) for field in FIELDS}
            unknown = [field for field in FIELDS
                       if not self._estimate.knows(field, removed[field])]
            for field in unknown:
                level = self._estimate.probe(field, removed[field])
                probes[self.state.cuts.model_copy(update={field: level})] = None
            if not unknown and len(jumps) < JUMPS:
                jumps.append(jump.cuts)
        return jumps, list(probes)

    def _jumps(self, bound: float) -> list[_Jump]:
        """Return for all widths the best cuts never scored, where they may lose less than `bound`.

        As many layers go as must, the cheapest first, and all that only add to the loss.
        """
        base, estimate = self._aim.base, self._estimate
        count = base.num_hidden_layers
        # a layer that was never scored comes last
        blocks = sorted(
            (block for block in layer_blocks(base) if estimate.protected.isdisjoint(block)),
            key=lambda block: (not estimate.layers.keys() >= set(block),
                               sum(estimate.layers.get(i, 0.0) for i in block)))
        cheapest = [i for block in blocks for i in block]
        whole = list(accumulate(map(len, blocks), initial=0))  # so many can go
        lost = list(accumulate((estimate.layers.get(i, 0.0) for i in cheapest), initial=0.0))
        droppable = count - fewest_layers(base)
        harmful = min(sum(loss < 0 for loss in estimate.layers.values()), droppable)
        offset = self.state.loss - estimate.loss(self.state.cuts)
        found = []
        for order, (widths, narrowed) in enumerate(self._offered.items()):
            loss = offset + estimate.loss(narrowed)
            if loss + lost[harmful] >= bound:
                continue
            # from `harmful` on `lost` grows: the most layers that may go without losing too much
            most = harmful + bisect_left(lost[harmful : droppable + 1], bound - loss) - 1
            capacity = self._aim.capacity(widths, count - max(most, harmful))
            dropped = next((n for n in whole if n >= max(count - capacity, harmful)), count)
            if capacity and dropped <= droppable and loss + lost[dropped] < bound:
                cuts = widths.cuts(base, tuple(sorted(cheapest[:dropped])))
                found.append(_Jump(loss + lost[dropped], order, cuts))
        return sorted(jump for jump in found if jump.cuts not in self._scores.seen)

    def _neighbours(self) -> list[Cuts]:
        """Return undos and swaps that hold the goals and were never scored, best estimate first."""
        base, found = self._aim.base, dict[Cuts, None]()
        for back in moves_back(base, self.state.cuts):
            undone = back.before(self.state.cuts)
            found[undone] = None
            found.update(dict.fromkeys(
                move.after(undone) for move in moves(base, undone, self._estimate.protected)))
        held = [cuts for cuts in found
                if cuts not in self._scores.seen and self._aim.excess(cuts) == 0]
        return sorted(held, key=self._estimate.loss)
