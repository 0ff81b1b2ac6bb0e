"""Windows spread over a sequence. Pure.

In: tokens, how many windows of how many. Out: windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def spread(items: Sequence[T], count: int, length: int) -> list[Sequence[T]]:
    """Cut `count` windows of `length` items, from the first item to nearly the last.

    Evenly spread; none overlaps another. There must be `count * length` items at least.
    """
    stride = (len(items) - length) // max(count - 1, 1)
    return [items[i * stride : i * stride + length] for i in range(count)]
