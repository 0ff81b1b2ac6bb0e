"""Served widths: whole K-quant blocks, whole enough steps, corners below which nothing lies."""

from __future__ import annotations

import pytest

from edgeprune.model.cuts import Cuts
from edgeprune.model.quantization import tensor_bytes, tensor_types
from edgeprune.model.shape import Shape
from edgeprune.planning.moves import Kind, describe_change, moves, moves_back, why_width
from edgeprune.planning.widths import (
    Widths,
    corners,
    ffn_reason,
    heads_reason,
    served_components,
    served_ffn,
    served_heads,
    served_widths,
    shape_of,
    widths_of,
)
from tests.planning.worlds import BLOCKS, FREE, WIDE

SMOLLM2 = Shape(hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                     num_attention_heads=9, num_key_value_heads=3, head_dim=64, vocab_size=512,
                     tie_word_embeddings=True)
MHA = SMOLLM2.replace(num_key_value_heads=9, num_hidden_layers=9, intermediate_size=1100)
LLAMA8B = Shape(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                     num_attention_heads=32, num_key_value_heads=8, head_dim=128, vocab_size=512)
LLAMA70B = LLAMA8B.replace(hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
                           num_attention_heads=64)


def test_ffn_steps_are_whole_k_quant_blocks_and_no_finer_than_a_32nd() -> None:
    assert served_ffn(SMOLLM2) == (1536, 1280, 1024, 768, 512)  # 512 is a third
    assert served_ffn(WIDE) == (1356, 1280, 1024, 768, 512)  # 256 would be less
    assert served_ffn(LLAMA8B)[:3] == (14336, 13824, 13312)
    assert served_ffn(LLAMA8B)[-1] == 5120
    assert served_ffn(LLAMA70B)[-1] == 10240
    assert len(served_ffn(LLAMA70B)) == 19
    assert served_ffn(FREE) == (128,)


def test_heads_keep_the_rows_of_attn_output_as_good_as_they_were() -> None:
    assert set(served_heads(BLOCKS)) == {(4, 2), (4, 1), (2, 2)}
    assert len(served_heads(SMOLLM2)) == 9  # 576 is a multiple of 32 alone, as all of them
    assert set(served_heads(FREE)) == {(4, 2), (4, 1), (3, 2), (3, 1), (2, 2), (2, 1)}
    assert len(served_heads(WIDE)) == 8
    assert all(g * q * 128 % 256 == 0 for g, q in served_heads(LLAMA8B))


@pytest.mark.parametrize("base", [SMOLLM2, MHA, BLOCKS, WIDE, LLAMA8B.replace(num_hidden_layers=2)],
                         ids=["smollm2", "mha", "blocks", "wide", "8b"])
@pytest.mark.parametrize("quant", ["Q4_K_M", "Q6_K", "Q4_0"])
def test_no_width_makes_a_type_fall_back_that_did_not(base: Shape, quant: str) -> None:
    rank = {"Q4_0": 0, "Q4_K": 0, "Q6_K": 0, "Q5_0": 1, "Q8_0": 1, "F16": 2, "F32": 3}

    def worst(shape: Shape) -> dict[str, int]:
        found: dict[str, int] = {}
        for spec, kind in tensor_types(shape, quant):
            name = spec.name.split(".")[-2]
            found[name] = max(found.get(name, 0), rank[kind])
        return found

    base = base.replace(num_hidden_layers=1)
    whole = worst(base)
    for widths in served_widths(base):
        left = worst(shape_of(base, 1, widths))
        assert all(left[name] <= whole[name] for name in whole)


@pytest.mark.parametrize("base", [SMOLLM2.replace(num_hidden_layers=12), MHA, BLOCKS, WIDE],
                         ids=["smollm2", "mha", "blocks", "wide"])
@pytest.mark.parametrize("quant", ["Q4_K_M", "Q8_0", "F16"])
def test_a_file_shrinks_with_every_cut(base: Shape, quant: str) -> None:
    # what feasibility and the search for the number of layers rest on
    sizes = {(layers, widths): tensor_bytes(shape_of(base, layers, widths), quant)
             for widths in served_widths(base) for layers in range(1, base.num_hidden_layers + 1)}
    for (layers, widths), size in sizes.items():
        assert sizes.get((layers - 1, widths), 0) < size
        for move in moves(base, widths.cuts(base)):
            if move.kind is not Kind.LAYER:
                assert sizes[layers, widths_of(base, move.after(widths.cuts(base)))] < size


def test_a_file_shrinks_from_80_layers_too_where_the_types_change() -> None:
    sizes = [tensor_bytes(LLAMA70B.replace(num_hidden_layers=n), "Q4_K_M") for n in range(77, 82)]
    assert sizes == sorted(sizes)


def test_every_served_width_lies_above_a_corner_and_no_corner_above_another() -> None:
    assert corners(BLOCKS) == (Widths(4, 1, 512), Widths(2, 2, 512))
    assert corners(FREE) == (Widths(2, 1, 128),)
    for base in (SMOLLM2, BLOCKS, LLAMA8B, LLAMA70B):
        least = corners(base)
        assert all(any(all(a <= b for a, b in zip(corner, widths, strict=True))
                       for corner in least) for widths in served_widths(base))
        assert not any(all(a <= b for a, b in zip(one, other, strict=True))
                       for one in least for other in least if one != other)


@pytest.mark.parametrize("base", [SMOLLM2, BLOCKS, WIDE, LLAMA8B.replace(num_hidden_layers=3)])
def test_moves_reach_served_widths_only_and_can_be_taken_back(base: Shape) -> None:
    served = set(served_widths(base))
    for widths in served:
        cuts = widths.cuts(base, (1,))
        for move in moves(base, cuts):
            after = move.after(cuts)
            assert widths_of(base, after) in served
            assert move.before(after) == cuts
            assert move in moves_back(base, after) or move.kind is not Kind.LAYER
        for move in moves_back(base, cuts):
            before = move.before(cuts)
            assert widths_of(base, before) in served
            assert move.after(before) == cuts


def test_where_no_move_narrows_further_the_widths_are_a_corner() -> None:
    for base in (SMOLLM2, BLOCKS, LLAMA8B, LLAMA70B, MHA):
        for widths in served_widths(base):
            narrowing = [m for m in moves(base, widths.cuts(base)) if m.kind is not Kind.LAYER]
            assert bool(narrowing) == (widths not in corners(base))


def test_changes_and_widths_are_told_in_words() -> None:
    old = Cuts(layers=(3, 4, 12), kv_groups=2, ffn_channels=256)
    new = Cuts(layers=(3, 25), kv_groups=0, ffn_channels=512)
    assert describe_change(old, new) == (
        "swap: layers 4 12 back, 2 KV groups back in every layer, layer 25 dropped, "
        "256 FFN channels dropped in every layer")
    assert describe_change(Cuts(), Cuts(query_heads=1)) == (
        "cut: one query head dropped in every KV group")
    assert why_width(BLOCKS, Cuts(), Cuts(layers=(1,))) == ""
    assert why_width(BLOCKS, Cuts(), Cuts(kv_groups=2, ffn_channels=256)) == (
        "attn_output rows 256 = 1 x 256: whole K-quant blocks, between multiples a GGUF falls back "
        "to Q5_0; FFN 1024 = 4 x 256: rows of whole K-quant blocks, between multiples down_proj of "
        "a GGUF falls back to Q5_0/Q8_0")
    assert "unpruned" in ffn_reason(WIDE, 1356)
    assert "F16" in heads_reason(SMOLLM2, 2, 3)
    assert "any number" in heads_reason(FREE, 3, 2)


@pytest.mark.parametrize(("hidden", "fewer"), [
    (64, (0,)), (576, (0, 64)), (1536, (0,)), (2048, (0, 256)), (4096, (0, 256, 512))])
def test_components_go_in_whole_blocks_and_seven_eighths_stay(
    hidden: int, fewer: tuple[int, ...]
) -> None:
    assert served_components(BLOCKS.replace(hidden_size=hidden)) == fewer
