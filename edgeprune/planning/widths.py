"""The widths that are offered: those that the quantizer and the kernels serve well. Pure.

In: a shape. Out: the numbers of heads and FFN channels that a layer may keep, the smallest shapes
that they reach, and in words why a width is one of them.

A K-quant packs 256 weights of a row into a block. Where rows are no whole number of blocks, the
quantizer falls back: Q4_K to Q5_0, Q5_K to Q5_1, Q6_K to Q8_0, and to F16 where they are not even
a multiple of 32. Those types are larger, and Q5_0 and Q5_1 have no repacked kernels on ARM. The
rows of down_proj are the FFN's width, those of attn_output `num_attention_heads * head_dim`; all
others are hidden_size, which loses principal components, whole blocks at a time.

A share of everything stays, one in `KEEP`: of the layers, of the KV groups, of the query heads in
each, of the FFN. A smaller shape could be built, and would be fast; it would not be the user's
model any more. Published methods lose a Llama when half of it is gone.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

from edgeprune.model.cuts import Cuts
from edgeprune.model.quantization import K_QUANT_BLOCK, block_widths_below
from edgeprune.model.shape import Shape, takes_heads

KEEP = 3  # at least one in so many stays: together a ninth of the layers' weights
FFN_STEPS = 32  # a step below 1/32 of the width saves less than the cost model can tell
_GRAINS = (K_QUANT_BLOCK, 32, 1)  # rows of K-quants, of the types they fall back to, of F16


class Widths(NamedTuple):
    """What every layer keeps: KV groups, query heads in each of them, FFN channels.

    `hidden` is by how many channels the hidden states that all layers share are narrower.
    """

    groups: int
    queries: int
    ffn: int
    hidden: int = 0

    def cuts(self, base: Shape, layers: tuple[int, ...] = ()) -> Cuts:
        """Return the cuts that leave these widths and drop `layers`."""
        return Cuts(layers=layers, kv_groups=base.num_key_value_heads - self.groups,
                    query_heads=base.queries_per_group - self.queries,
                    ffn_channels=base.intermediate_size - self.ffn, hidden_channels=self.hidden)


def widths_of(base: Shape, cuts: Cuts) -> Widths:
    """Return the widths that cuts leave."""
    return Widths(base.num_key_value_heads - cuts.kv_groups,
                  base.queries_per_group - cuts.query_heads,
                  base.intermediate_size - cuts.ffn_channels, cuts.hidden_channels)


def ffn_step(base: Shape) -> int:
    """Return the FFN's step: 1/32 of its width, rounded to whole K-quant blocks, at least one."""
    blocks = round(base.intermediate_size / FFN_STEPS / K_QUANT_BLOCK)
    return K_QUANT_BLOCK * max(1, blocks)


def served_ffn(base: Shape) -> tuple[int, ...]:
    """Return the FFN's widths, the unpruned one first, then the multiples of the step below it."""
    step, width = ffn_step(base), base.intermediate_size
    return width, *range((width - 1) // step * step, least_of(width) - 1, -step)


def row_grain(base: Shape) -> int:
    """Return what the rows of attn_output stay a multiple of: the best that the base's are."""
    return _grain(base.num_attention_heads * base.head_dim)


def served_hidden(base: Shape) -> tuple[int, ...]:
    """Return by how much narrower hidden states are offered: in steps of what the width has.

    Only a published recipe cuts there (LLM-Pruner's channel-wise mode): every weight of the model
    loses.
    """
    width, grain = base.hidden_size, _grain(base.hidden_size)
    return tuple(range(0, width - least_of(width) + 1, grain))


def served_components(base: Shape) -> tuple[int, ...]:
    """Return how many principal components of the hidden states may go, none first.

    What is left is whole K-quant blocks. Each component serves all layers, so at least seven
    eighths stay. None where norms stand behind projections: a model cannot be turned through them.
    """
    if base.of.norms_after:
        return (0,)
    width = base.hidden_size
    return 0, *(width - left for left in block_widths_below(width) if 8 * left >= 7 * width)


def served_heads(base: Shape) -> tuple[tuple[int, int], ...]:
    """Return the pairs of KV groups and query heads in each, the unpruned pair first."""
    grain = row_grain(base)
    groups, queries = base.num_key_value_heads, base.queries_per_group
    pairs = product(range(groups, least_of(groups) - 1, -1),
                    range(queries, least_of(queries) - 1, -1))
    return tuple((g, q) for g, q in pairs if g * q * base.head_dim % grain == 0 and takes_heads(
        base.replace(num_key_value_heads=g, num_attention_heads=g * q)))


def served_widths(base: Shape) -> tuple[Widths, ...]:
    """Return all widths that are offered, the unpruned ones first."""
    return tuple(Widths(g, q, ffn) for (g, q), ffn in product(served_heads(base), served_ffn(base)))


def _grain(row: int) -> int:
    return next(grain for grain in _GRAINS if row % grain == 0)


def least_of(number: int) -> int:
    """Return how many of something stay at least."""
    return -(-number // KEEP)


def layer_blocks(base: Shape) -> tuple[tuple[int, ...], ...]:
    """Return which layers go together.

    Each for itself; but where a GGUF file tells kinds of layers apart by their number alone, as
    many as one period has, so that those behind them stay of their kind.
    """
    size, count = base.of.unrotated_every or 1, base.num_hidden_layers
    return tuple(tuple(range(first, first + size)) for first in range(0, count - size + 1, size))


def fewest_layers(base: Shape) -> int:
    """Return how many layers stay at least."""
    size, count = base.of.unrotated_every or 1, base.num_hidden_layers
    return count - (count - least_of(count)) // size * size


def shape_of(base: Shape, layers: int, widths: Widths) -> Shape:
    """Return the shape of `layers` layers of these widths: of their kinds those of the first."""
    kinds = {name: tuple(i for i in getattr(base, name) if i < layers)
             for name in ("local_layers", "unrotated_layers")}
    return base.replace(num_hidden_layers=layers, **kinds, num_key_value_heads=widths.groups,
                        num_attention_heads=widths.groups * widths.queries,
                        intermediate_size=widths.ffn,
                        hidden_size=base.hidden_size - widths.hidden)


def smallest_shapes(base: Shape) -> tuple[Shape, ...]:
    """Return the shapes of the fewest layers that stay, at each of the `corners`."""
    layers = fewest_layers(base)
    return tuple(shape_of(base, layers, widths) for widths in corners(base))


def corners(base: Shape) -> tuple[Widths, ...]:
    """Return the smallest widths: no others are at most as wide in all three.

    There may be several: rows of 256 with heads of 64 take 4 heads, as 1 group of 4, 2 of 2 or 4
    of 1. Costs fall with each number, so one of the corners, with the fewest layers, reaches what
    any shape reaches.
    """
    pairs, least = served_heads(base), served_ffn(base)[-1]
    return tuple(
        Widths(g, q, least) for g, q in pairs
        if not any((a, b) != (g, q) and a <= g and b <= q for a, b in pairs)
    )


def ffn_reason(base: Shape, width: int) -> str:
    """Say why an FFN width is offered."""
    if width == base.intermediate_size:
        return f"FFN {width}: the unpruned width"
    return (f"FFN {width} = {width // K_QUANT_BLOCK} x {K_QUANT_BLOCK}: rows of whole K-quant "
            "blocks, between multiples down_proj of a GGUF falls back to Q5_0/Q8_0")


def heads_reason(base: Shape, groups: int, queries: int) -> str:
    """Say why a number of heads is offered."""
    row, grain = groups * queries * base.head_dim, row_grain(base)
    text = f"attn_output rows {row}"
    if grain == 1:
        return f"{text}: no multiple of 32 unpruned either, any number of heads is as good"
    if grain == K_QUANT_BLOCK:
        return (f"{text} = {row // grain} x {grain}: whole K-quant blocks, between multiples a "
                "GGUF falls back to Q5_0")
    return f"{text} = {row // grain} x {grain}: whole blocks of Q5_0, else a GGUF falls back to F16"
