"""Small shapes, costs and random tables of losses that the planner's tests share."""

from __future__ import annotations

from itertools import chain, combinations

from hypothesis import strategies as st

from edgeprune.errors import InfeasibleError
from edgeprune.model.cuts import Cuts
from edgeprune.model.shape import Shape
from edgeprune.planning.budget import Metric
from edgeprune.planning.cost import Cost
from edgeprune.planning.exact import Solution, solve_exact
from edgeprune.planning.grammar import parse_budget
from edgeprune.planning.greedy import Plan, make_plan
from edgeprune.planning.loss_table import LossTable, Score
from edgeprune.planning.widths import served_widths

# attn_output rows of 80, no multiple of 32: any number of heads is as good as any other
FREE = Shape(hidden_size=80, intermediate_size=128, num_hidden_layers=8,
                  num_attention_heads=8, num_key_value_heads=4, head_dim=10, vocab_size=256)
# rows of 512 = 2 K-quant blocks: 4 or 8 of the 8 heads, as (4, 1), (2, 2) or (4, 2)
BLOCKS = FREE.replace(head_dim=64, intermediate_size=1280)
# 3 of the 5 groups may go, and 844 = 76 + 3 * 256 channels: no less than a third stays
WIDE = FREE.replace(num_attention_heads=10, num_key_value_heads=5, intermediate_size=1356)
SHORT = BLOCKS.replace(num_hidden_layers=5)
SINGLE = WIDE.replace(num_attention_heads=8, num_key_value_heads=8, num_hidden_layers=6)
# layers 0 to 3, 4 to 7 and 8 to 11 go together, two of the three at most, and 12 stays
FOURS = BLOCKS.replace(family="smollm3", num_hidden_layers=13, unrotated_layers=(3, 7, 11))
SHAPES = (WIDE, BLOCKS, SHORT, SINGLE, FOURS)


def predict(shape: Shape) -> Cost:
    """Cost time by query heads and FFN, RAM by KV groups and FFN; 10 ms and 5 MB for the head."""
    layers, ffn = shape.num_hidden_layers, 5 * shape.intermediate_size / 128
    token = 10 + layers * (ffn + shape.num_attention_heads)
    ram = 5 + layers * (ffn / 5 + 4 * shape.num_key_value_heads)
    return Cost(ttft_ms=token, token_ms=token, ram_bytes=ram * 1e6, file_bytes=token * 1e5)


def limits_of(text: str, base: Shape) -> dict[Metric, float]:
    budget = parse_budget(text)
    return budget.limits(budget.values(predict(base)))


def plan(text: str, score: Score, base: Shape = FREE) -> Plan:
    return make_plan(base, parse_budget(text), limits_of(text, base), predict, score, {})


def plan_or_none(text: str, score: Score, base: Shape) -> Plan | None:
    try:
        return plan(text, score, base)
    except InfeasibleError:
        return None


def exact(text: str, table: LossTable, base: Shape) -> Solution | None:
    return solve_exact(base, parse_budget(text), limits_of(text, base), predict, table)


def loss_of(made: Plan, table: LossTable) -> float:
    return table.loss(made.cuts)


def even_table(base: Shape, layer: float = 1.0, width: float = 1.0) -> LossTable:
    """Return losses that are the same for each layer, and for each width by what it removes."""
    removed = [widths.cuts(base) for widths in served_widths(base)]
    return LossTable(
        base_loss=2.0, layers=dict.fromkeys(range(base.num_hidden_layers), layer),
        kv_groups={c.kv_groups: width * c.kv_groups for c in removed},
        query_heads={c.query_heads: width * c.query_heads for c in removed},
        ffn_channels={c.ffn_channels: width * c.ffn_channels / 256 for c in removed},
    )


@st.composite
def tables(draw: st.DrawFn, least: float = 0.0) -> tuple[Shape, LossTable]:
    """Draw a shape, and losses that grow with each width removed, a layer's from `least` on."""
    base = draw(st.sampled_from(SHAPES))
    cuts = [widths.cuts(base) for widths in served_widths(base)]

    def growing(removed: set[int]) -> dict[int, float]:
        steps = draw(st.lists(st.floats(0, 3), min_size=len(removed), max_size=len(removed)))
        return {count: sum(steps[1:i + 1]) for i, count in enumerate(sorted(removed))}

    layers = draw(st.lists(st.floats(least, 5), min_size=base.num_hidden_layers,
                           max_size=base.num_hidden_layers))
    return base, LossTable(
        base_loss=2.0, layers=dict(enumerate(layers)),
        kv_groups=growing({c.kv_groups for c in cuts}),
        query_heads=growing({c.query_heads for c in cuts}),
        ffn_channels=growing({c.ffn_channels for c in cuts}),
    )


def all_cuts(base: Shape) -> list[Cuts]:
    """Return everything that may be cut, one by one; a third of the layers stays."""
    whole, size = base.num_hidden_layers, 4 if base == FOURS else 1
    blocks = [tuple(range(i, i + size)) for i in range(0, whole - size + 1, size)]
    subsets = [layers for n in range(len(blocks) + 1) for some in combinations(blocks, n)
               if 3 * (whole - len(layers := tuple(chain(*some)))) >= whole]
    return [widths.cuts(base, layers) for widths in served_widths(base) for layers in subsets]


def keeps_a_third(base: Shape, shape: Shape) -> bool:
    """Tell whether a third of the layers, the KV groups, the heads in each and the FFN is left."""
    return all(3 * left >= whole for left, whole in (
        (shape.num_hidden_layers, base.num_hidden_layers),
        (shape.num_key_value_heads, base.num_key_value_heads),
        (shape.queries_per_group, base.queries_per_group),
        (shape.intermediate_size, base.intermediate_size)))
