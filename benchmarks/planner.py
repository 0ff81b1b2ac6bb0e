"""Print how near the planner comes to the optimum, and what planning a large model takes.

    python benchmarks/planner.py [--tables 50] [--seed 0]

Random tables of losses, on which losses add up: the gap of the greedy alone, and of the plan that
is returned, to the exact optimum (HiGHS). Then, in a process of its own, a plan for a shape of 80
layers. Costs are a formula of weights and layers: no machine is measured, so neither the tables nor
the gaps depend on the machine; the seconds and megabytes do.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from statistics import median
from typing import NamedTuple

import numpy as np

from benchmarks.host import describe_machine, peak_rss_bytes
from edgeprune.errors import InfeasibleError
from edgeprune.model.shape import Shape
from edgeprune.planning.budget import violation
from edgeprune.planning.cost import Cost
from edgeprune.planning.exact import gap, solve_exact
from edgeprune.planning.grammar import parse_budget
from edgeprune.planning.greedy import make_plan
from edgeprune.planning.loss_table import LossTable
from edgeprune.planning.widths import least_of, served_ffn

GAP = 0.02  # what counts as near
EIGHTY = Shape(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
                    num_attention_heads=64, num_key_value_heads=8, head_dim=128, vocab_size=128256)


def _shape(layers: int, heads: int, groups: int, head_dim: int, ffn: int) -> Shape:
    return Shape(hidden_size=heads * head_dim, intermediate_size=ffn,
                      num_hidden_layers=layers, num_attention_heads=heads,
                      num_key_value_heads=groups, head_dim=head_dim, vocab_size=32000)


# of the sizes of SmolLM2 135M and 360M, Llama 3.2 1B, TinyLlama, Llama 3 8B, Llama 2 7B and 13B
SHAPES = (_shape(30, 9, 3, 64, 1536), _shape(32, 15, 5, 64, 2560),
          _shape(16, 32, 8, 64, 8192), _shape(22, 32, 4, 64, 5632),
          _shape(32, 32, 8, 128, 14336), _shape(32, 32, 32, 128, 11008),
          _shape(40, 40, 40, 128, 13824))


class Result(NamedTuple):
    """One table: the gaps of the greedy alone and of the returned plan, and what that took."""

    greedy: float
    plan: float
    scored: int
    narrows: bool


def predict(shape: Shape) -> Cost:
    """Cost a shape: 4.5 bits a weight, 10 GB/s, 20 us a layer, a KV cache for 2048 tokens."""
    layers = shape.num_hidden_layers
    layer_bytes = 0.5625 * (shape.attention_weights + shape.ffn_weights)
    file_bytes = 0.82 * shape.vocab_size * shape.hidden_size + layers * layer_bytes
    cache_bytes = 2 * 2 * 2048 * layers * shape.num_key_value_heads * shape.head_dim
    token_ms = file_bytes / 1e7 + 0.02 * layers
    return Cost(ttft_ms=4 * token_ms, token_ms=token_ms, ram_bytes=file_bytes + cache_bytes,
                file_bytes=file_bytes)


def random_table(base: Shape, random: np.random.Generator) -> LossTable:
    """Draw losses: layers lognormal, the first and last dear; widths growing in random steps."""
    layers = random.lognormal(-2.5, 0.8, base.num_hidden_layers)
    layers[[0, 1, -1]] += random.uniform(1, 5, 3)

    def growing(removed: list[int]) -> dict[int, float]:
        # steps neither convex nor concave; all of them together as dear as several layers
        steps = random.lognormal(0, 1.2, len(removed) - 1)
        total = random.uniform(0.2, 2)
        losses = np.cumsum(steps) * total / max(steps.sum(), 1e-9)
        return dict(zip(removed, [0.0, *losses.tolist()], strict=True))

    groups, queries = base.num_key_value_heads, base.queries_per_group
    return LossTable(
        base_loss=2.5, layers=dict(enumerate(layers.tolist())),
        kv_groups=growing(list(range(groups - least_of(groups) + 1))),
        query_heads=growing(list(range(queries - least_of(queries) + 1))),
        ffn_channels=growing([base.intermediate_size - width for width in served_ffn(base)]),
    )


def random_budget(random: np.random.Generator) -> str:
    """Draw a budget: latency, in half of all cases RAM too."""
    text = f"100 tokens < {random.uniform(5, 90):.1f}%"
    return f"{text}, ram < {random.uniform(5, 90):.1f}%" if random.random() < 0.5 else text


def compare(base: Shape, table: LossTable, text: str) -> Result | None:
    """Plan greedily and exactly; None when both say that the budget cannot be held.

    Raises:
        RuntimeError: They disagree on that, or the plan breaks the limits or beats the optimum.
    """
    budget = parse_budget(text)
    limits = budget.limits(budget.values(predict(base)))
    exact = solve_exact(base, budget, limits, predict, table)
    try:
        made = make_plan(base, budget, limits, predict, table, {})
    except InfeasibleError:
        if exact is not None:
            raise
        return None
    if exact is None:
        raise RuntimeError(f"the exact planner holds '{text}' to be infeasible, the greedy not")
    if violation(budget.values(made.cost), limits) > 0:
        raise RuntimeError(f"the plan does not hold '{text}'")
    greedy = float("inf")  # the greedy alone found nothing
    if not made.steps or violation(budget.values(made.steps[-1].cost), limits) == 0:
        greedy = gap(made.steps[-1].loss if made.steps else table.base_loss, exact.loss,
                     table.base_loss)
    found = gap(table.loss(made.cuts), exact.loss, table.base_loss)
    if found < 0:
        raise RuntimeError(f"the plan for '{text}' loses less than the optimum")
    return Result(greedy, found, made.scored, exact.cuts.narrows_layers)


def main() -> int:
    """Compare, time and print."""
    parser = argparse.ArgumentParser(description="Measure the planner.")
    parser.add_argument("--tables", type=int, default=50, help="random tables to plan on")
    parser.add_argument("--seed", type=int, default=0, help="of the random tables")
    parser.add_argument("--eighty", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.eighty:
        print(json.dumps(_plan_eighty(options.seed)))
        return 0
    print(f"{describe_machine()}, {datetime.now(UTC):%Y-%m-%d}, seed {options.seed}\n")
    random, results, refused = np.random.default_rng(options.seed), list[Result](), 0
    while len(results) < options.tables:
        base = SHAPES[(len(results) + refused) % len(SHAPES)]
        found = compare(base, random_table(base, random), random_budget(random))
        refused += found is None
        results += [found] if found else []
    _print_gaps(results, refused)
    argv = [sys.executable, __file__, "--eighty", "--seed", str(options.seed)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
    figures = json.loads(done.stdout)
    print("\n80 layers, 64 heads in 8 groups, FFN 28672, to half the latency: "
          f"{figures['seconds']:.2f} s, peak {figures['mb']:.0f} MB, "
          f"{figures['scored']} candidates scored, {figures['steps']} steps; "
          f"torch {'loaded' if figures['torch'] else 'not loaded'}, "
          f"scipy {'loaded' if figures['scipy'] else 'not loaded'}")
    return 0


def _print_gaps(results: list[Result], refused: int) -> None:
    rows: tuple[tuple[str, Callable[[Result], float]], ...] = (
        ("greedy alone", lambda r: r.greedy), ("returned plan", lambda r: r.plan))
    print(f"gap to the exact optimum on {len(results)} random tables "
          f"({refused} more had infeasible budgets, both planners said so)\n")
    print("| | median | worst | within 2 % |\n| :-- | --: | --: | --: |")
    for name, of in rows:
        gaps = [of(result) for result in results]
        near = sum(g <= GAP for g in gaps)
        print(f"| {name} | {median(gaps):.2%} | {max(gaps):.2%} | {near} of {len(gaps)} |")
    scored = [result.scored for result in results]
    print(f"\n{sum(r.narrows for r in results)} optima narrow layers, the others only drop some; "
          f"candidates scored: median {median(scored):.0f}, most {max(scored)}")


def _plan_eighty(seed: int) -> dict[str, float]:
    """Plan for a shape like Llama 3 70B's, and say what that took of this process."""
    table = random_table(EIGHTY, np.random.default_rng(seed))
    budget = parse_budget("100 tokens < 50%")
    limits = budget.limits(budget.values(predict(EIGHTY)))
    began = time.perf_counter()
    made = make_plan(EIGHTY, budget, limits, predict, table, {})
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "scored": made.scored, "steps": len(made.steps),
            "mb": peak_rss_bytes() / 1e6,
            "torch": "torch" in sys.modules, "scipy": "scipy" in sys.modules}


if __name__ == "__main__":
    sys.exit(main())
