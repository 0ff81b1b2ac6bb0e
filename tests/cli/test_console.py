"""What the commands share: what may be overwritten, which number format is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprune.cli.console import check_destination, number_format
from edgeprune.errors import UsageError
from edgeprune.model.quantization import DEFAULT_FORMAT


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Give the directory of a model, in one of its own."""
    made = tmp_path / "models/mine"
    made.mkdir(parents=True)
    (made / "config.json").write_text("{}")
    return made


def test_what_is_free_may_be_written(model: Path, tmp_path: Path) -> None:
    for holds in (None, "config.json"):
        check_destination(tmp_path / "new", model, holds=holds, force=False)


def test_nothing_is_overwritten_unasked(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF\x03")
    (tmp_path / "made").mkdir()
    for destination, holds in ((tmp_path / "a.gguf", None), (tmp_path / "made", "config.json")):
        with pytest.raises(UsageError, match="--force overwrites it"):
            check_destination(destination, model, holds=holds, force=False)
    check_destination(tmp_path / "a.gguf", model, holds=None, force=True)


def test_no_other_file_is_overwritten(model: Path, tmp_path: Path) -> None:
    for name in ("keep.txt", "models/mine/model.safetensors"):
        (tmp_path / name).write_text("years")
        with pytest.raises(UsageError, match="not a GGUF file"):
            check_destination(tmp_path / name, model, holds=None, force=True)
    (model / "tokenizer.gguf").write_bytes(b"GGUF\x03")
    with pytest.raises(UsageError, match="belongs to the model itself"):
        check_destination(model / "tokenizer.gguf", model, holds=None, force=True)


@pytest.mark.parametrize("holds", [None, "config.json", "model.onnx"])
def test_a_model_is_never_overwritten_by_what_is_made_of_it(
    model: Path, tmp_path: Path, holds: str | None
) -> None:
    (tmp_path / "link").symlink_to(model)
    for destination in (model, model.parent, tmp_path / "link"):
        for models in ((model,), (tmp_path / "pruned", model)):
            with pytest.raises(UsageError, match="the model itself"):
                check_destination(destination, *models, holds=holds, force=True)


@pytest.mark.parametrize("holds", ["config.json", "model.onnx"])
def test_a_directory_of_other_things_stays(model: Path, tmp_path: Path, holds: str) -> None:
    papers = tmp_path / "papers"
    papers.mkdir()
    check_destination(papers, model, holds=holds, force=True)  # empty: nothing to lose
    (papers / "thesis.txt").write_text("years")
    with pytest.raises(UsageError, match=r"not a model's directory \(thesis\.txt\)"):
        check_destination(papers, model, holds=holds, force=True)
    with pytest.raises(UsageError, match="not a file"):
        check_destination(papers, model, holds=None, force=True)
    with pytest.raises(UsageError, match="not a directory"):
        check_destination(papers / "thesis.txt", model, holds=holds, force=True)
    (papers / holds).touch()
    with pytest.raises(UsageError, match=r"\(thesis\.txt\)"):
        check_destination(papers, model, holds=holds, force=True)
    (papers / "thesis.txt").unlink()
    with pytest.raises(UsageError, match=f"no {holds} with weights"):
        check_destination(papers, model, holds=holds, force=True)
    (papers / "weights.safetensors").touch()
    check_destination(papers, model, holds=holds, force=True)
    (papers / ".git").mkdir()
    with pytest.raises(UsageError, match=r"\(\.git\)"):
        check_destination(papers, model, holds=holds, force=True)


def test_a_number_format_is_named_by_one_option_in_any_case() -> None:
    assert number_format("gguf", "AUTO") == "auto"
    assert number_format("GGUF", "Q4_0") == "Q4_0"
    assert number_format("onnx:int8", DEFAULT_FORMAT) == "onnx:int8"
    with pytest.raises(UsageError, match="take --format onnx:int8"):
        number_format("gguf", "onnx:int8")
    with pytest.raises(UsageError, match="leave one of the two out"):
        number_format("onnx:int8", "Q4_0")
