"""The explanation of a plan for `edgeprune plan --explain`: its reasons, and how good it is.

In: a plan and what it had to hold. Out: lines for people, the exact planner's answer among them.
"""

from __future__ import annotations

from edgeprune.model.cuts import Cuts
from edgeprune.planning.demand import Demand
from edgeprune.planning.exact import gap, solve_exact
from edgeprune.planning.greedy import Plan
from edgeprune.planning.moves import describe_change
from edgeprune.planning.widths import served_widths


def explanation(plan: Plan, demand: Demand) -> list[str]:
    """Return how far a plan is from the exact optimum on the losses that were seen.

    The table takes losses to add up, which a Llama's do not quite: what the exact planner finds on
    it need not be better in truth.
    """
    if plan.table is None:
        return ["nothing was cut, so nothing is to be explained"]
    table, offered = plan.table, served_widths(plan.base)
    errors = ", ".join(f"{name} {error:.1%}" for name, error in plan.cost_error.items())
    lines = [f"offered: {plan.base.num_hidden_layers} layers, {len(offered)} widths for all",
             f"scored on the calibration text: {plan.scored} candidates",
             f"errors to expect of the prediction: {errors}"]
    greedy = plan.steps[-1].loss - table.base_loss if plan.steps else None
    if plan.refined and greedy is not None:
        lines.append(f"the greedy's moves alone lose {greedy:+.4f}, with what bettered them "
                     f"{plan.loss_increase:+.4f}")
    fewer = Cuts(components=plan.cuts.components)  # the table is of the other cuts
    exact = solve_exact(fewer.shape(plan.base), demand.budget, demand.limits, demand.predict, table,
                        plan.margin)
    if exact is None:
        return [*lines, "exact planner (HiGHS): nothing in the table holds the goals"]
    mine = table.loss(plan.cuts)
    lines.append("on the table of the losses that were seen, as if they added up: this plan "
                 f"{mine - table.base_loss:+.4f}, the exact planner (HiGHS) "
                 f"{exact.loss - table.base_loss:+.4f}, gap "
                 f"{gap(mine, exact.loss, table.base_loss):.1%}")
    others = plan.cuts.model_copy(update={"components": 0})
    if exact.cuts != others:
        lines.append(f"to the exact one: {describe_change(others, exact.cuts)}")
    return lines
