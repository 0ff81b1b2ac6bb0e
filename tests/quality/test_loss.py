"""What a number format of ONNX loses by itself, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import psutil
import pytest

from edgeprune.errors import EdgePruneError, InputError, QualityError
from edgeprune.model.checkpoint import Checkpoint
from edgeprune.model.onnx_formats import FLOAT, INT8
from edgeprune.model.tokenizer import tokenizer_of
from edgeprune.quality.loss import check_loss, loss_of, perplexity_as
from edgeprune.quality.results import Quality
from tests.cli.test_app import assert_one_line
from tests.conftest import Cli


def quality(perplexity: float) -> Quality:
    """Return a perplexity over some tokens."""
    return Quality(perplexity=perplexity, n_tokens=4088)


def test_three_per_cent_are_allowed_and_more_is_refused_with_the_figures() -> None:
    check_loss(INT8, quality(10.29), quality(10.0))
    check_loss(INT8, quality(9.0), quality(10.0))
    with pytest.raises(QualityError, match=r"onnx:int8 .* 3.1%, from 10.00 .* to 10.31") as caught:
        check_loss(INT8, quality(10.31), quality(10.0))
    assert "--allow-quality-loss" in str(caught.value)
    assert loss_of(quality(11), quality(10)) == pytest.approx(0.1)


def test_the_float_graph_and_int8_agree_and_nothing_is_left(small: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(small, small / "tokenizer.gguf")
    exact, int8 = (perplexity_as(Checkpoint(small), tokenizer, quant, tmp_path)
                   for quant in (FLOAT, INT8))
    assert exact.n_tokens == int8.n_tokens == 8 * 511
    assert abs(math.log(int8.perplexity / exact.perplexity)) < 0.01
    assert exact.perplexity != int8.perplexity
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_judged_is_said(
    tiny: Path, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="tokenizer"):
        perplexity_as(Checkpoint(tiny), None, FLOAT, tmp_path)
    tokenizer = tokenizer_of(small, tmp_path / "tokenizer.gguf")
    little = psutil.virtual_memory()._replace(available=2**20)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little)
    with pytest.raises(EdgePruneError, match=r"GiB of RAM: got '0.0 GiB'.*--allow-quality-loss"):
        perplexity_as(Checkpoint(small), tokenizer, FLOAT, tmp_path)


@pytest.mark.smollm2
def test_what_loses_too_much_is_refused_with_the_figure_and_can_be_had_all_the_same(
    cli: Cli, tmp_path: Path
) -> None:
    dynamic = ("export", "smollm2", "model", "--format", "onnx:int8-dynamic")
    assert_one_line(cli(*dynamic), 8, "raises perplexity by", "3% are allowed",
                    "--allow-quality-loss")
    assert not list(tmp_path.iterdir())
    done = cli(*dynamic, "--allow-quality-loss")
    assert done.returncode == 0, done.stderr
    # onnx:int8 may be had: tests/run/test_smollm2.py
    assert (tmp_path / "model/model.onnx").is_file()
