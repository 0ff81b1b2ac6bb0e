"""A demand: limits in the numbers of one target, and the prediction that plans are held to. Pure.

In: a budget, its limits in the target's units, a cost model, what was learnt from measurements.
Out: predicted costs of any shape. A record: plans are kept under its hash.
"""

from __future__ import annotations

from edgeprune.model.shape import Shape
from edgeprune.planning.budget import Budget, Metric
from edgeprune.planning.cost import Cost, CostModel
from edgeprune.records import Record


class Demand(Record):
    """What a plan has to hold, and how its costs are predicted.

    Attributes:
        budget: The demands.
        limits: What they come to, each time at p50.
        model: The cost model.
        factors: Measured by predicted, what was learnt so far; predictions are multiplied with it.
        margin: The share of each limit to stay below it.
    """

    budget: Budget
    limits: dict[Metric, float]
    model: CostModel
    factors: dict[str, float]
    margin: float

    def predict(self, shape: Shape) -> Cost:
        """Predict the cost of a request of the budget."""
        return self.unscaled(shape).scaled(self.factors)

    def unscaled(self, shape: Shape) -> Cost:
        """Predict it as the profile alone does."""
        budget = self.budget
        return self.model.predict(shape, budget.n_prompt, budget.n_new, budget.context)
