"""Cuts: the shape that is left, the heads and channels that stay."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgeprune.model.cuts import Cuts, LayerImportance, kept_in_layer, kept_layers
from edgeprune.model.shape import Shape

BASE = Shape(hidden_size=64, intermediate_size=96, num_hidden_layers=4,
                  num_attention_heads=6, num_key_value_heads=3, head_dim=16, vocab_size=128)


CHANNELS = tuple(float(i % 7) for i in range(96))


def test_the_most_important_groups_heads_and_channels_stay() -> None:
    heads = (1.0, 9.0, 2.0, 1.0, 5.0, 4.0)  # groups: 10, 3, 9
    importance = LayerImportance(heads=heads, channels=CHANNELS)
    kept = kept_in_layer(BASE, importance, Cuts(kv_groups=1, query_heads=1, ffn_channels=83))
    assert kept.kv_heads == (0, 2)
    assert kept.query_heads == (1, 4)
    assert kept.ffn_channels == tuple(range(6, 96, 7))


def test_of_equally_important_ones_the_first_stay() -> None:
    importance = LayerImportance(heads=(1.0,) * 6, channels=(1.0,) * 96)
    kept = kept_in_layer(BASE, importance, Cuts(kv_groups=2, ffn_channels=90))
    assert kept.query_heads == (0, 1)
    assert kept.ffn_channels == (0, 1, 2, 3, 4, 5)


@given(
    importance=st.lists(st.floats(0, 1e6), min_size=6, max_size=6),
    groups=st.integers(0, 2), queries=st.integers(0, 1), channels=st.integers(0, 95),
    layers=st.sets(st.integers(0, 3), max_size=3),
)
def test_what_stays_fits_the_shape(
    importance: list[float], groups: int, queries: int, channels: int, layers: set[int]
) -> None:
    cuts = Cuts(layers=tuple(sorted(layers)), kv_groups=groups, query_heads=queries,
                ffn_channels=channels)
    left = cuts.shape(BASE)
    heads = kept_in_layer(
        BASE, LayerImportance(heads=tuple(importance), channels=CHANNELS), cuts)
    assert len(heads.ffn_channels) == left.intermediate_size
    assert len(kept_layers(BASE, cuts)) == left.num_hidden_layers
    assert len(heads.kv_heads) == left.num_key_value_heads
    assert len(heads.query_heads) == left.num_attention_heads
    # every query head stays with its own group, the same number in each
    per_group = [sum(q // 2 == g for q in heads.query_heads) for g in heads.kv_heads]
    assert per_group == [left.queries_per_group] * left.num_key_value_heads
