"""Rotary frequencies, against transformers' own."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from edgeprune.model.rope import inverse_frequencies
from edgeprune.model.shape import config_of_shape, shape_of_config
from tests.model.test_shape import LLAMA_31_8B

SCALINGS = [None, {"rope_type": "linear", "factor": 4.0}, LLAMA_31_8B["rope_scaling"],
            {**LLAMA_31_8B["rope_scaling"], "factor": 32.0}]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_frequencies_equal_those_of_transformers(scaling: dict[str, object] | None) -> None:
    shape = shape_of_config({**LLAMA_31_8B, "rope_scaling": scaling})
    theirs = LlamaRotaryEmbedding(LlamaConfig(**config_of_shape(shape, LLAMA_31_8B))).inv_freq
    torch.testing.assert_close(torch.tensor(inverse_frequencies(shape)), theirs,
                               rtol=1e-5, atol=0)
