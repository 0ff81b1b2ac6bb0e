"""What is measured for a profile: everything that a cost depends on moves, and it stays small."""

from __future__ import annotations

import pytest

from edgeprune.model.quantization import tensor_bytes
from edgeprune.model.shape import Shape, shape_of_config
from edgeprune.profiling.design import MAX_FILE_BYTES, Pace, design, pace_of, reference_shape
from edgeprune.profiling.profile import blocks_of
from edgeprune.profiling.threads import candidates, choose
from tests.model.test_shape import LLAMA_31_8B
from tests.planning.test_cost import SMOLLM2

PACE = Pace(32, 256, 32)


def test_each_dimension_and_the_context_move() -> None:
    points = design(SMOLLM2, "Q4_K_M", PACE)
    assert points[0].shape == SMOLLM2
    for name, at_least in (("num_hidden_layers", 3), ("num_key_value_heads", 2),
                           ("intermediate_size", 2), ("vocab_size", 2), ("hidden_size", 2)):
        assert len({getattr(p.shape, name) for p in points}) >= at_least
    assert len({p.shape.queries_per_group for p in points}) == 2
    assert {p.workload.n_prompt for p in points} == {32, 35, 256}
    assert len(set(points)) == len(points) <= 18


def test_each_other_format_is_measured_in_two_depths() -> None:
    points = design(SMOLLM2, "Q4_K_M", PACE, ("Q4_0", "Q8_0"))
    alone = design(SMOLLM2, "Q4_K_M", PACE)
    assert points[: len(alone)] == alone
    assert [(p.quant, p.shape.num_hidden_layers) for p in points[len(alone):]] == [
        ("Q4_0", 30), ("Q4_0", 15), ("Q8_0", 30), ("Q8_0", 15)]


@pytest.mark.parametrize(("groups", "heads"), [(9, 9), (1, 9), (1, 1)])
def test_shapes_that_lack_a_dimension_have_fewer_points(groups: int, heads: int) -> None:
    shape = SMOLLM2.replace(num_key_value_heads=groups, num_attention_heads=heads)
    points = design(shape, "Q4_K_M", PACE)
    assert 8 < len(points) < len(design(SMOLLM2, "Q4_K_M", PACE))


def test_a_large_model_is_measured_in_few_layers_of_its_own_width() -> None:
    shape = shape_of_config(LLAMA_31_8B)
    reference = reference_shape(shape, "Q4_K_M")
    assert 4 <= reference.num_hidden_layers < 10
    # layers differ a little in their number types
    assert tensor_bytes(reference, "Q4_K_M") <= 1.05 * MAX_FILE_BYTES
    assert reference.replace(num_hidden_layers=32) == shape
    assert reference_shape(SMOLLM2, "Q4_K_M") == SMOLLM2


def test_half_an_ffn_is_whole_blocks_where_there_are_any() -> None:
    def widths(width: int) -> set[int]:
        shape: Shape = SMOLLM2.replace(intermediate_size=width)
        return {p.shape.intermediate_size for p in design(shape, "Q4_K_M", PACE)}

    assert widths(1536) == {1536, 768}
    assert widths(11008) == {11008, 5376}  # 11008 / 2 is no whole number of K-quant blocks
    assert widths(96) == {96, 48}


@pytest.mark.parametrize(("prompt_ms", "token_ms", "pace"), [
    (1.7, 7, Pace(32, 256, 32)),  # SmolLM2 on a laptop
    (250, 300, Pace(4, 16, 4)),  # the same on the emulated machine
    (30, 20, Pace(4, 32, 32)),
])
def test_requests_are_as_long_as_the_target_is_fast(
    prompt_ms: float, token_ms: float, pace: Pace
) -> None:
    assert pace_of(prompt_ms, token_ms) == pace


def test_blocks_fit_into_ram_and_share_the_first_model() -> None:
    assert blocks_of([1, 1, 1], 10) == [[0, 1, 2]]
    assert blocks_of([2, 1, 1, 1, 1], 4) == [[0, 1, 2], [0, 3, 4]]
    # what fits nowhere is tried alone beside the first
    assert blocks_of([2, 9, 1], 4) == [[0, 1], [0, 2]]


def test_threads_to_try_are_few_and_the_fewest_good_ones_are_taken() -> None:
    assert candidates(1) == [1]
    assert candidates(2) == [1, 2]
    assert candidates(8) == [1, 2, 4, 6, 8]
    assert choose({1: 100.0, 2: 60.0, 4: 59.5, 6: 80.0}) == 2
    assert choose({1: 100.0, 2: 60.0, 4: 50.0}) == 4
