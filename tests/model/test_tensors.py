"""The tensor table, against what transformers writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.tensors import tensor_specs
from tests.tiny import make_tiny


def _written(directory: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(directory / "model.safetensors", framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def test_the_table_names_every_tensor_that_transformers_writes(tiny: Path) -> None:
    shape = Checkpoint(tiny).shape
    assert {spec.name: spec.dims(shape) for spec in tensor_specs(shape)} == _written(tiny)


@pytest.mark.parametrize("biases", [{"attention_bias": True}, {"mlp_bias": True}])
def test_biases_are_in_the_table(tmp_path: Path, biases: dict[str, Any]) -> None:
    directory = make_tiny(tmp_path, **biases)
    shape = Checkpoint(directory).shape
    assert {spec.name: spec.dims(shape) for spec in tensor_specs(shape)} == _written(directory)
