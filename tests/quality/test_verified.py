"""No artifact leaves that computes something else than its checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune.errors import EdgePruneError
from edgeprune.export import gguf as ours
from edgeprune.export.onnx import export_onnx
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.gguf import GgufModel
from edgeprune.model.onnx_formats import FLOAT
from edgeprune.quality import verified
from edgeprune.quality.verified import check_parity, export_verified, telling_layers
from tests.tiny import make_tiny


@pytest.mark.parametrize("quant", ["F32", "F16", "Q4_0", "Q4_K_M", "onnx:fp32", "onnx:int8"])
@pytest.mark.parametrize("large", [False, True])
def test_what_agrees_is_written(
    quant: str, large: bool, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "LARGE_BYTES", 0 if large else verified.LARGE_BYTES)
    export_verified(Checkpoint(small), None, tmp_path / "made", quant=quant, name="made")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_what_ram_does_not_hold_is_judged_by_its_first_layers(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "HELD", 0)
    export_verified(Checkpoint(small), None, tmp_path / "made", quant="Q4_0", name="made")
    monkeypatch.setattr(ours, "interleave_rope_rows", lambda array, _: array)
    with pytest.raises(EdgePruneError, match="as F16 computes something else"):
        export_verified(Checkpoint(small), None, tmp_path / "other", quant="Q4_0", name="other")


@pytest.mark.parametrize("quant", ["F32", "Q4_0", "Q8_0"])
def test_rows_in_the_wrong_order_are_found_in_every_format(
    quant: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ours, "interleave_rope_rows", lambda array, _: array)
    with pytest.raises(EdgePruneError, match="computes something else"):
        export_verified(Checkpoint(small), None, tmp_path / "made", quant=quant, name="made")
    assert not list(tmp_path.iterdir())


def test_a_file_that_holds_another_model_is_found(tmp_path: Path) -> None:
    """Its first layers agree: the whole is asked, too."""
    model = make_tiny(tmp_path / "model", hidden_size=256, intermediate_size=256)
    other = make_tiny(tmp_path / "other", kind="mha-tied", hidden_size=256, intermediate_size=256)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    export_verified(Checkpoint(other), None, tmp_path / "file", quant="Q4_0", name="other")
    with pytest.raises(EdgePruneError, match="logits that correlate by"):
        verified._verify(Checkpoint(model), tmp_path / "file", "Q4_0", scratch)


def test_a_graph_of_other_weights_is_found(small: Path, tmp_path: Path) -> None:
    export_onnx(Checkpoint(small), None, tmp_path / "onnx", quant=FLOAT)
    check_parity(Checkpoint(small), tmp_path / "onnx", FLOAT)
    with (tmp_path / "onnx/model.onnx.data").open("r+b") as file:
        file.seek(4 * 10**6)  # within a layer
        file.write(bytes(4 * 10**4))
    with pytest.raises(EdgePruneError, match="something else than the checkpoint: got 'logits"):
        check_parity(Checkpoint(small), tmp_path / "onnx", FLOAT)


def test_layers_of_each_kind_are_among_those_that_are_looked_at(small: Path) -> None:
    shape = Checkpoint(small).shape
    assert telling_layers(shape) == 2
    assert telling_layers(shape.replace(local_layers=(0, 1, 2, 3, 4), sliding_window=8)) == 6
    assert telling_layers(shape.replace(unrotated_layers=(3,))) == 4


def test_first_layers_are_the_same_model_cut_short(small: Path, tmp_path: Path) -> None:
    head = Checkpoint(small).first_layers(2)
    export_verified(head, None, tmp_path / "head", quant="F32", name="head")
    with GgufModel(tmp_path / "head") as model:
        assert model.n_vocab == head.shape.vocab_size
    assert Checkpoint(small).shape.num_hidden_layers == 6
