"""The design of a profile: few synthetic shapes and requests that tell every price. Pure.

In: the model's shape, number formats, how fast the target is. Out: points, the reference first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edgeprune.model.cuts import Cuts
from edgeprune.model.quantization import K_QUANT_BLOCK, block_widths_below, tensor_bytes
from edgeprune.model.shape import Shape
from edgeprune.target.measurement import Workload

# Speed depends on shapes, and grows with the layers in a straight line: a few of them suffice.
MAX_FILE_BYTES = 3 * 2**29
LONG_PROMPT_MS, REPLY_MS = 1500, 800  # what the long prompt and the reply may about take


class Pace(NamedTuple):
    """The requests that a profile is made of: short and long prompts, and new tokens."""

    n_short: int
    n_long: int
    n_new: int


class DesignPoint(NamedTuple):
    """One shape in a number format, with the request that it is measured with."""

    shape: Shape
    quant: str
    workload: Workload


def pace_of(prompt_token_ms: float, token_ms: float) -> Pace:
    """Return requests that are long enough to tell and short enough to repeat."""
    n_long = max(16, min(256, int(LONG_PROMPT_MS / prompt_token_ms) // 32 * 32))
    return Pace(max(4, n_long // 8), n_long, max(4, min(32, int(REPLY_MS / token_ms))))


def reference_shape(shape: Shape, quant: str) -> Shape:
    """Return the deepest shape that is measured: the model's own, or its width in few layers."""
    one, two = (tensor_bytes(shape.replace(num_hidden_layers=n), quant) for n in (1, 2))
    fitting = int((MAX_FILE_BYTES - one) / max(two - one, 1)) + 1
    return shape.replace(num_hidden_layers=min(shape.num_hidden_layers, max(4, fitting)))


def design(
    shape: Shape, quant: str, pace: Pace, others: Sequence[str] = ()
) -> list[DesignPoint]:
    """Return the points to measure; the first is the reference with a short prompt.

    Depth, KV groups, query heads in groups, FFN, hidden states, vocabulary and context each move,
    and the costs that grow with the context do so at several depths and widths. Some prompts are no
    whole fours of tokens, which kernels take at once; their replies are longer, which tells what
    only the first tokens of a reply cost. Of each other format it takes two shapes to tell what its
    number types cost: what a layer or an attended token costs is the same in all.
    """
    whole = reference_shape(shape, quant)
    depths = [max(1, whole.num_hidden_layers // n) for n in (1, 2, 4)]
    deep, half, shallow = (whole.replace(num_hidden_layers=depth) for depth in depths)
    short, odd, long = (Workload(n_prompt=n_prompt, n_new=n_new) for n_prompt, n_new in (
        (pace.n_short, pace.n_new), (pace.n_short + 3, 3 * pace.n_new),
        (pace.n_long, pace.n_new)))
    groups, queries = shape.num_key_value_heads, shape.queries_per_group
    points = [(deep, short), (half, odd), (shallow, short), (deep, long), (half, long)]
    if groups > 1:
        few = max(1, groups // 4)
        points += [(_heads(deep, few, queries), odd), (_heads(half, few, queries), short),
                   (_heads(deep, few, queries), long)]
    if queries > 1:
        points += [(_heads(deep, groups, queries // 2), w) for w in (short, long)]
    narrow = {"intermediate_size": _half_width(shape.intermediate_size)}
    points += [(deep.replace(**narrow), odd), (half.replace(**narrow), short),
               (deep.replace(**narrow), long)]
    # far below the others, so that what a layer costs whatever its size is told from its MB
    points.append((_heads(shallow.replace(**narrow), max(1, groups // 4), queries), short))
    points.append((half.replace(vocab_size=max(1, shape.vocab_size // 2)), odd))
    for width in block_widths_below(shape.hidden_size)[:1]:
        fewer = Cuts(components=shape.hidden_size - width)
        points += [(fewer.shape(deep), short), (fewer.shape(half), long)]
    found = [DesignPoint(one, quant, workload) for one, workload in dict.fromkeys(points)]
    for other in others:
        whole = reference_shape(shape, other)
        half = whole.replace(num_hidden_layers=max(1, whole.num_hidden_layers // 2))
        found += [DesignPoint(whole, other, short), DesignPoint(half, other, long)]
    return found


def _heads(shape: Shape, groups: int, queries: int) -> Shape:
    return shape.replace(num_key_value_heads=groups, num_attention_heads=groups * queries)


def _half_width(width: int) -> int:
    """Return half of an FFN's width, in whole K-quant blocks when there are any."""
    half = width // 2
    return half - half % K_QUANT_BLOCK if half >= K_QUANT_BLOCK else max(half, 1)
