"""Cuts: the shape that is left, the heads that stay."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgeprune.model.cuts import Cuts, kept_heads, kept_layers
from edgeprune.model.shape import LlamaShape

BASE = LlamaShape(hidden_size=64, intermediate_size=96, num_hidden_layers=4,
                  num_attention_heads=6, num_key_value_heads=3, head_dim=16, vocab_size=128)


def test_the_most_important_groups_and_heads_stay() -> None:
    importance = [1.0, 9.0, 2.0, 1.0, 5.0, 4.0]  # groups: 10, 3, 9
    heads = kept_heads(BASE, importance, Cuts(kv_groups=1, query_heads=1))
    assert heads.kv_heads == (0, 2)
    assert heads.query_heads == (1, 4)


def test_of_equally_important_heads_the_first_stay() -> None:
    assert kept_heads(BASE, [1.0] * 6, Cuts(kv_groups=2)).query_heads == (0, 1)


@given(
    importance=st.lists(st.floats(0, 1e6), min_size=6, max_size=6),
    groups=st.integers(0, 2), queries=st.integers(0, 1),
    layers=st.sets(st.integers(0, 3), max_size=3),
)
def test_what_stays_fits_the_shape(
    importance: list[float], groups: int, queries: int, layers: set[int]
) -> None:
    cuts = Cuts(layers=tuple(sorted(layers)), kv_groups=groups, query_heads=queries)
    left, heads = cuts.shape(BASE), kept_heads(BASE, importance, cuts)
    assert len(kept_layers(BASE, cuts)) == left.num_hidden_layers
    assert len(heads.kv_heads) == left.num_key_value_heads
    assert len(heads.query_heads) == left.num_attention_heads
    # every query head stays with its own group, the same number in each
    per_group = [sum(q // 2 == g for q in heads.query_heads) for g in heads.kv_heads]
    assert per_group == [left.queries_per_group] * left.num_key_value_heads
