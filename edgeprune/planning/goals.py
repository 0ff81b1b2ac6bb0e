"""Goals of a plan: predicted costs of cuts, held against the limits less a margin. Pure.

In: a shape, a budget with its limits, a prediction. Out: by how much cuts miss the goals, and how
many layers can stay at given widths.

A cost depends only on the number of layers and on the widths, so each is predicted once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from edgeprune.model.cuts import Cuts
from edgeprune.model.shape import Shape
from edgeprune.planning.budget import Budget, Metric, violation
from edgeprune.planning.cost import Cost
from edgeprune.planning.widths import Widths, corners, fewest_layers, shape_of, widths_of

# Goals this far below each limit: the prediction's error must not cost a round of correction.
MARGIN = 0.03
Predict = Callable[[Shape], Cost]
Values = Mapping[Metric, float]


class Goals:
    """The goals of one planning call, and the predictions made for it.

    Attributes:
        base: The unpruned shape.
        budget: The demands.
    """

    def __init__(
        self, base: Shape, budget: Budget, limits: Values, predict: Predict, margin: float
    ) -> None:
        """Prepare.

        Args:
            base: The unpruned shape.
            budget: The demands.
            limits: What they come to on the target; at least one of `corners` holds them.
            predict: Predicts the cost of a shape; must not grow with a cut.
            margin: The share of each limit to stay below it, where that can be reached.
        """
        self.base, self.budget, self._predict = base, budget, predict
        self._costs: dict[tuple[int, Widths], Cost] = {}
        self._excess: dict[tuple[int, Widths], float] = {}
        self._capacity: dict[Widths, int] = {}
        self._fewest = fewest_layers(base)
        least = [self._values(self._fewest, widths) for widths in corners(base)]
        self._goals = goals(least, limits, margin)

    def cost(self, cuts: Cuts) -> Cost:
        """Return the predicted cost after cuts."""
        return self._cost(self.base.num_hidden_layers - len(cuts.layers),
                          widths_of(self.base, cuts))

    def excess(self, cuts: Cuts) -> float:
        """Return by what share cuts miss the goals; 0 when they hold."""
        return self._missed(self.base.num_hidden_layers - len(cuts.layers),
                            widths_of(self.base, cuts))

    def capacity(self, widths: Widths, at_least: int = 1) -> int:
        """Return with how many layers at most the goals hold at these widths.

        Args:
            widths: What each layer keeps.
            at_least: Fewer are of no use: 0 is returned then, after a single prediction.
        """
        at_least = max(at_least, self._fewest)
        if widths not in self._capacity and self._missed(at_least, widths) > 0:
            return 0
        if widths not in self._capacity:
            holds, fails = at_least, self.base.num_hidden_layers + 1
            while fails - holds > 1:
                middle = (holds + fails) // 2
                if self._missed(middle, widths) > 0:
                    fails = middle
                else:
                    holds = middle
            self._capacity[widths] = holds
        capacity = self._capacity[widths]
        return capacity if capacity >= at_least else 0

    def _missed(self, layers: int, widths: Widths) -> float:
        key = layers, widths
        if key not in self._excess:
            values = self._values(layers, widths)
            self._excess[key] = min((violation(values, goal) for goal in self._goals),
                                    default=float("inf"))
        return self._excess[key]

    def _values(self, layers: int, widths: Widths) -> Values:
        return self.budget.values(self._cost(layers, widths))

    def _cost(self, layers: int, widths: Widths) -> Cost:
        key = layers, widths
        if key not in self._costs:
            self._costs[key] = self._predict(shape_of(self.base, layers, widths))
        return self._costs[key]


def goals(least: Sequence[Values], limits: Values, margin: float) -> list[dict[Metric, float]]:
    """Return the goals, of which a plan must hold one.

    A goal is the limit less the margin, but no smaller than what a corner reaches: where the margin
    cannot be reached, the plan comes as near as it can. So goals grow with the limits, and a
    looser budget offers every plan that a tighter one did. There are several only where several
    corners lie within the margin.

    Args:
        least: The values of the corners with the fewest layers.
        limits: The largest allowed value by metric.
        margin: The share of each limit to stay below it.
    """
    found: list[dict[Metric, float]] = []
    for corner in least:
        if violation(corner, limits) > 0:
            continue
        goal = {m: max(limit * (1 - margin), corner[m]) for m, limit in limits.items()}
        if not any(_within(goal, other) for other in found):
            found = [other for other in found if not _within(other, goal)] + [goal]
    return found


def _within(inner: Values, outer: Values) -> bool:
    return all(inner[metric] <= outer[metric] for metric in inner)
