"""The real SmolLM2 the whole way on this machine, as ONNX in int8."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.conftest import Cli
from tests.run.test_pipeline import QUIET_OR_NOT


@pytest.mark.smollm2
@pytest.mark.timeout(1800)
def test_smollm2_as_onnx_int8_holds_a_budget(
    cli: Cli, tmp_path: Path, smollm2_profiles: Path
) -> None:
    done = cli("run", "smollm2", "--target", "local", "--format", "onnx:int8", "--name", "r",
               "--budget", "4 tokens after 8 < 1 min, size < 85%, ppl_ratio < 9", "--effort", "low",
               "--threads", "1", "--profile-seconds", "8", "--profiles", str(smollm2_profiles),
               timeout_s=1500)
    assert done.returncode in QUIET_OR_NOT, done.stdout + done.stderr
    # the faster way to int8 is not taken where it loses too much
    assert "int8: weight-only (MatMulNBits); dynamic int8 would raise perplexity by" in done.stdout
    run = tmp_path / "runs/r"
    outcome = json.loads((run / "run.json").read_text())
    assert outcome["quant"] == outcome["reference"] == "onnx:int8"
    verdicts = {judgement["metric"]: judgement["verdict"] for judgement in outcome["judgements"]}
    assert (verdicts["file_bytes"], verdicts["ppl_ratio"]) == ("met", "met")
    before, after = outcome["before"], outcome["after"]
    assert after["file_bytes"] == pytest.approx(outcome["plan"]["cost"]["file_bytes"], rel=0.01)
    assert after["peak_ram_bytes"] == pytest.approx(outcome["plan"]["cost"]["ram_bytes"], rel=0.1)
    assert 1 < after["perplexity"] / before["perplexity"] < 9
    # int8 costs the pruned model no more than it may
    exact = json.loads((run / "quality-after-onnx-fp32.json").read_text())["perplexity"]
    assert after["perplexity"] / exact < 1.03
    assert len(outcome["kinds"]["kinds"]) == 6
    assert "onnxruntime" in outcome["system_info"]
    model = AutoModelForCausalLM.from_pretrained(run / "model")
    assert model.num_parameters() < 134_515_008
